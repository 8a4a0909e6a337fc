"""Finds the tritonserver that the `nvidia-pytriton` wheel carries, and says how to run it."""

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.errors import MissingExtraError, RepositoryError, ServerStartError
from triton_rerank_build.late_interaction.repository import LATE
from triton_rerank_build.repository.layout import RERANKER, Layout

BACKENDS = Path(__file__).parent / "backends"
# Runtime -> (the module it needs, tritonserver's options).
RUNTIMES = {
    "openvino": ("openvino", ("--model-config-name=cpu",)),
    "onnxruntime": ("onnxruntime", ()),
}
# OpenVINO keeps a compiled copy of every model, precision and version: 2.3 GB for bge-reranker-v2-m3 at fp32.
COMPILED_BYTES = 6_000_000_000
INSTALL_SERVER = 'pip install "triton-rerank-build[server]"'


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be started here.

    Attributes:
        root: Folder `pytriton/tritonserver` of the wheel.
        libraries: Folders for LD_LIBRARY_PATH: the wheel's own libraries, and the one with libpython if needed.
        runtime: A key of RUNTIMES.
    """

    root: Path
    libraries: tuple[Path, ...]
    runtime: str

    def command(self, repository: Path, folder: Path, ports: tuple[int, ...], shm_prefix: str, host: str) -> list[str]:
        """The command line; the backend folder is laid out in `folder`."""
        grpc_port, http_port, metrics_port = ports
        return [
            str(self.root / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={self._lay_out_backends(folder)}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
            # The committed configs are complete; Triton need not guess, and so can't guess differently.
            "--disable-auto-complete-config",
            *RUNTIMES[self.runtime][1],
            *(f"--grpc-address={host}", f"--grpc-port={grpc_port}"),
            *(f"--http-address={host}", f"--http-port={http_port}"),
            *(f"--metrics-address={host}", f"--metrics-port={metrics_port}"),
            # Sockets of several servers must not share a port by accident.
            "--reuse-grpc-port=false",
            "--reuse-http-port=false",
        ]

    def environment(self) -> dict[str, str]:
        """The environment: the Python stub finds our interpreter, and so our packages, as the first on PATH."""
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
        """backends/NAME/ as Triton wants them: the wheel's Python backend with our stub, and this project's own.

        Copies of some 5 MB, not links: Triton follows links, and refuses a library outside the backend's folder.
        """
        backends = folder / "backends"
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(self.root / "backends" / "python", backends / "python", ignore=no_caches)
        shutil.copy(stub_of(self.root, f"{sys.version_info.major}.{sys.version_info.minor}"), backends / "python")
        shutil.copytree(BACKENDS, backends, ignore=no_caches, dirs_exist_ok=True)
        return backends


def find(runtime: str) -> Installation:
    """The installation for `runtime`, everything it needs checked beforehand.

    Raises:
        ServerStartError: This platform or Python can't run it; the message says what would.
        MissingExtraError: A package of the `server` extra is missing.
    """
    if runtime not in RUNTIMES:
        raise ServerStartError(f"unknown runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}")
    check_platform(sys.platform, platform.machine())
    for module in ("pytriton", "tokenizers", RUNTIMES[runtime][0]):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"the package {module!r} is not installed: {INSTALL_SERVER}")
    package = Path(next(iter(importlib.util.find_spec("pytriton").submodule_search_locations)))  # type: ignore
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub_of(root, version)
    return Installation(root, (package.parent / "nvidia_pytriton.libs", *libpython_folder(version)), runtime)


def check_platform(system: str, machine: str) -> None:
    """Raise ServerStartError unless the wheel's tritonserver runs on it."""
    if (system, machine) != ("linux", "x86_64"):
        raise ServerStartError(
            f"tritonserver comes from PyPI for Linux on x86-64 alone, this is {system} on {machine}: "
            "run it in NVIDIA's container instead (docker-compose.yml)"
        )


def installed_ensembles(repository: Path) -> tuple[Layout, ...]:
    """Those whose generated files are in `repository`.

    Raises:
        RepositoryError: There is none; the message is about the reranker.
    """
    installed = tuple(
        layout
        for layout in (RERANKER, LATE)
        if all((repository / path).is_file() for path in (*layout.artefacts, *layout.manifests[-1:]))
    )
    if RERANKER in installed or not installed:
        check_repository(repository)
    return installed


def load_arguments(repository: Path, installed: Sequence[Layout]) -> tuple[str, ...]:
    """Tritonserver's options that leave out models whose generated files are missing, without which it would end."""
    incomplete = {model for layout in (RERANKER, LATE) if layout not in installed for model in layout.models}
    folders = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    if not incomplete & folders:
        return ()
    return ("--model-control-mode=explicit", *(f"--load-model={model}" for model in sorted(folders - incomplete)))


def check_repository(repository: Path) -> None:
    """Raise RepositoryError unless the reranker's committed files and artefacts are there."""
    for model in ("reranker", "tokenizer", "cross_encoder"):
        if not (repository / model / "config.pbtxt").is_file():
            raise RepositoryError(
                f"{repository} is no reranker repository: {model}/config.pbtxt is missing; "
                f"make one with `triton-rerank-build export CHECKPOINT --repository {repository}`"
            )
    for artefact in (
        "tokenizer/1/tokenizer.json",
        "cross_encoder/1/model.onnx",
        "cross_encoder/1/manifest.json",
    ):
        if not (repository / artefact).is_file():
            raise RepositoryError(
                f"no checkpoint is installed in {repository} ({artefact} is missing): "
                f"run `triton-rerank-build export CHECKPOINT --repository {repository}`, or `export demo` to try it"
            )


def stub_of(root: Path, version: str) -> Path:
    """The wheel's Python stub for `version`, like "3.11", or ServerStartError."""
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        there = sorted((path.name for path in stub.parent.parent.iterdir()), key=lambda name: int(name.split(".")[1]))
        raise ServerStartError(f"nvidia-pytriton has no Python stub for {version}: use one of {', '.join(there)}")
    return stub


def libpython_folder(version: str) -> list[Path]:
    """The folder of the shared libpython, which the stub is linked to; nothing if the system finds it by itself."""
    name = f"libpython{version}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if folder and (Path(folder) / name).is_file():
            return [Path(folder)]
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServerStartError(
            f"{name} is missing, and Triton's Python backend needs it: on Debian and Ubuntu `apt-get install "
            f"libpython{version}`; with pyenv build Python with PYTHON_CONFIGURE_OPTS=--enable-shared; Pythons "
            "installed by uv or conda have it"
        ) from None
    return []
