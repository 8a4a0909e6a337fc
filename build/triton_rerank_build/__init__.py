"""Export a checkpoint into a Triton model repository, compare it with PyTorch, and serve it without a GPU."""

from importlib import import_module
from typing import TYPE_CHECKING

from triton_rerank_build.errors import (
    BuildError,
    MissingExtraError,
    ParityError,
    RepositoryError,
    ServerStartError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from triton_rerank_build.exporter import export
    from triton_rerank_build.repository.manifest import Manifest
    from triton_rerank_build.repository.verify import verify
    from triton_rerank_build.serving.server import EmbeddedServer

__all__ = [
    "BuildError",
    "EmbeddedServer",
    "Manifest",
    "MissingExtraError",
    "ParityError",
    "RepositoryError",
    "ServerStartError",
    "UnsupportedModelError",
    "export",
    "verify",
]

__version__ = "0.2.0"

# Imported on first use, so that importing the errors does not import the packages of the extras.
_LAZY = {
    "EmbeddedServer": "triton_rerank_build.serving.server",
    "Manifest": "triton_rerank_build.repository.manifest",
    "export": "triton_rerank_build.exporter",
    "verify": "triton_rerank_build.repository.verify",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
