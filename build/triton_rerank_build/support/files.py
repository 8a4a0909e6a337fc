"""Hashes, locks and folders: file operations that several commands share."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_rerank_build.errors import BuildError

CACHE_VARIABLE = "TRITON_RERANK_CACHE"

_CHUNK_BYTES = 1 << 22


def sha256_file(path: Path) -> str:
    """Hex digest of a file, with a progress bar on a terminal when it is large."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    digest = hashlib.sha256()
    size = path.stat().st_size
    # None hides the bar unless stderr is a terminal; below 1 GB hashing is faster than anyone reads.
    hide = True if size < 1 << 30 else None
    with (
        path.open("rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"sha256 {path.name}", disable=hide, leave=False) as bar,
    ):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def sha256_texts(parts: Iterable[str]) -> str:
    """Digest of a sequence of short texts; it depends on their order and boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all, however the process ends."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def let_all_read(paths: Iterable[Path]) -> None:
    """Give files the usual mode: safetensors makes files that their owner alone can read."""
    for path in paths:
        path.chmod(0o644)


def work_folder(parent: Path, inputs: Iterable[str]) -> Path:
    """A folder in `parent` for work that may be broken off, which the same inputs find again.

    Raises:
        BuildError: It holds the work of other inputs.
    """
    folder = parent / sha256_texts(inputs)[:16]
    if any(other != folder for other in parent.glob("*")):
        raise BuildError(f"{parent} holds work with other data or settings; delete it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_folder() -> Path:
    """The folder of downloads, converted checkpoints and compiled models.

    $TRITON_RERANK_CACHE, else $XDG_CACHE_HOME/triton-rerank, else ~/.cache/triton-rerank.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "triton-rerank"


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file; the kernel releases the lock when the process ends, also after a crash.

    Args:
        path: The file; made if missing, and not removed.
        wait: Whether to wait for another holder or to raise.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is False.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder PREFIX-*.tmp in `parent`, removed at the end, for callers that hold a lock on `parent`.

    Folders that a killed process left behind are removed first. An OSError of the block that names no file, such as
    that of a full disk, gets the path of `parent`.
    """
    for leftover in parent.glob(f"{prefix}-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}-", suffix=".tmp", dir=parent) as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(parent)) from error


def shrink_folder(folder: Path, max_bytes: int) -> None:
    """Remove files of `folder`, least recently used first, until the others hold `max_bytes` at most.

    The file used last stays, whatever its size. Processes that have a removed file open keep it.
    """
    found = [(path, path.stat()) for path in folder.glob("*") if path.is_file()]
    # Most file systems update the access time at most once a day; the time of writing is exact.
    found.sort(key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime), reverse=True)
    total = 0
    for number, (path, status) in enumerate(found):
        total += status.st_size
        if number > 0 and total > max_bytes:
            path.unlink(missing_ok=True)
