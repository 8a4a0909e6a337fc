"""Finds the tritonserver in the `nvidia-pytriton` wheel, and builds its command line and environment."""

import ctypes
import importlib.util
import os
import platform
import secrets
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from triton_rerank_build.contract import BACKENDS
from triton_rerank_build.errors import MissingExtraError, ServerStartError
from triton_rerank_build.serving.listeners import Listener

# Runtime -> (the module it needs, tritonserver's options).
RUNTIMES = {
    "openvino": ("openvino", ("--model-config-name=cpu",)),
    "onnxruntime": ("onnxruntime", ()),
}
# OpenVINO keeps a compiled copy of every model, precision and version: 2.3 GB for bge-reranker-v2-m3 at fp32.
COMPILED_BYTES = 6_000_000_000
# Callers of a reranker don't need these. With them, a caller could map shared memory of this machine, choose files that
# tritonserver writes, and, where models may be loaded one by one, load code of his own.
RESTRICTED = ("shared-memory", "trace", "logging")
INSTALL_SERVER = 'pip install "triton-rerank-build[server]"'


@dataclass(frozen=True)
class Installation:
    """A tritonserver that runs on this machine.

    Attributes:
        root: Folder `pytriton/tritonserver` of the wheel.
        libraries: Folders for LD_LIBRARY_PATH: the wheel's libraries, and the folder of libpython if needed.
        runtime: A key of RUNTIMES.
    """

    root: Path
    libraries: tuple[Path, ...]
    runtime: str

    def command(self, repository: Path, folder: Path, listeners: Sequence[Listener], shm_prefix: str) -> list[str]:
        """The command line; lays out the backends in `folder`."""
        return [
            str(self.root / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={self._lay_out_backends(folder)}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            # The committed configs are complete. Without this option Triton would overwrite parts of them with guesses.
            "--disable-auto-complete-config",
            *RUNTIMES[self.runtime][1],
            # By default four models load at once. Python processes that start side by side on a busy machine can exceed
            # the 10 s that the Python backend waits for a lock in shared memory, which ends tritonserver.
            "--model-load-thread-count=1",
            *(f"--{each.service}-address={each.host}" for each in listeners),
            *(f"--{each.service}-port={each.port}" for each in listeners),
            # With port reuse, two servers could listen on one port without an error.
            "--reuse-grpc-port=false",
            "--reuse-http-port=false",
        ]

    def environment(self) -> dict[str, str]:
        """The environment. Triton's Python stub uses the first interpreter on PATH: this one, with its packages."""
        from triton_rerank_build.support.files import cache_folder, shrink_folder

        environment = dict(os.environ)
        libraries = [*map(str, self.libraries), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        shrink_folder(cache_folder() / "openvino", COMPILED_BYTES)
        environment.setdefault("RERANK_OPENVINO_CACHE", str(cache_folder() / "openvino"))
        environment.pop("PYTHONHOME", None)
        return environment

    def _lay_out_backends(self, folder: Path) -> Path:
        """Lay out backends/NAME/: the wheel's Python backend with the matching stub, and this project's backends.

        They are copied (about 5 MB): Triton resolves links and refuses a library outside the backend's folder.
        """
        backends = folder / "backends"
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(self.root / "backends" / "python", backends / "python", ignore=no_caches)
        shutil.copy(stub_of(self.root, f"{sys.version_info.major}.{sys.version_info.minor}"), backends / "python")
        shutil.copytree(BACKENDS, backends, ignore=no_caches, dirs_exist_ok=True)
        return backends


def restrictions(loads: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
    """Tritonserver's options that close RESTRICTED to callers, by a random key; none if the owner restricts APIs.

    Args:
        loads: Options that choose single models. Triton would load any other model on request then.
        arguments: The owner's own options.
    """
    if any(option.startswith(("--grpc-restricted", "--http-restricted")) for option in arguments):
        return ()
    loads = ("model-repository",) if loads else ()
    group = f"{','.join((*RESTRICTED, *loads))}:rerank-admin-key={secrets.token_hex(16)}"
    return f"--grpc-restricted-protocol={group}", f"--http-restricted-api={group}"


def find(runtime: str) -> Installation:
    """The installation for `runtime`, after a check of everything it needs.

    Raises:
        ServerStartError: This platform, Python or numpy can't run it; the message names what can.
        MissingExtraError: A package of the `server` extra is missing.
    """
    if runtime not in RUNTIMES:
        raise ServerStartError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    check_platform(sys.platform, platform.machine())
    for module in ("pytriton", "tokenizers", RUNTIMES[runtime][0]):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"the package {module!r} is not installed: {INSTALL_SERVER}")
    check_numpy(metadata.version("numpy"))
    package = Path(next(iter(importlib.util.find_spec("pytriton").submodule_search_locations)))  # type: ignore
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub_of(root, version)
    return Installation(root, (package.parent / "nvidia_pytriton.libs", *libpython_folder(version)), runtime)


def check_numpy(version: str) -> None:
    """Raise ServerStartError if the wheel's Python models would end with this numpy, at their first request."""
    if int(version.partition(".")[0]) > 1:
        raise ServerStartError(
            f'numpy {version} is installed, and this tritonserver needs numpy 1; run: pip install "numpy<2" '
            "(a package that was installed later has replaced it)"
        )


def check_platform(system: str, machine: str) -> None:
    """Raise ServerStartError unless the wheel's tritonserver runs on this platform."""
    if (system, machine) != ("linux", "x86_64"):
        raise ServerStartError(
            f"the wheel with tritonserver exists only for Linux on x86-64, this is {system} on {machine}: "
            "run it in NVIDIA's container instead (docker-compose.yml)"
        )


def stub_of(root: Path, version: str) -> Path:
    """The wheel's Python stub for `version`, like "3.11", or ServerStartError."""
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        there = sorted((path.name for path in stub.parent.parent.iterdir()), key=lambda name: int(name.split(".")[1]))
        raise ServerStartError(f"nvidia-pytriton has no Python stub for {version}: use one of {', '.join(there)}")
    return stub


def libpython_folder(version: str) -> list[Path]:
    """The folder of the shared libpython that the stub links to; empty if the dynamic loader finds it."""
    name = f"libpython{version}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if folder and (Path(folder) / name).is_file():
            return [Path(folder)]
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServerStartError(
            f"{name} is missing, and Triton's Python backend needs it: on Debian and Ubuntu `apt-get install "
            f"libpython{version}`; with pyenv, build Python with PYTHON_CONFIGURE_OPTS=--enable-shared; "
            "Python from uv or conda includes it"
        ) from None
    return []
