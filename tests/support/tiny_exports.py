"""Tiny checkpoints and the repositories exported from them, one per family and precision in a session."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.tiny_models import tiny_checkpoint
from triton_rerank_build import Manifest, export
from triton_rerank_build.contract import CROSS_ENCODER, MODEL_FILE
from triton_rerank_build.repository.layout import padded_graph
from triton_rerank_build.support.files import locked


@dataclass(frozen=True)
class TinyExport:
    """A checkpoint named `tiny` and the repository that holds its export. Tests that change one take a copy."""

    checkpoint: Path
    repository: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The graph of padded rows."""
        return padded_graph(self.repository / CROSS_ENCODER)

    @property
    def packed(self) -> Path:
        """The graph of packed rows; at fp16."""
        return self.repository / CROSS_ENCODER / MODEL_FILE


TinyExports = Callable[[str, str], TinyExport]
"""(family, precision) -> its export, of 2 layers."""


def tiny_export(folder: Path, family: str, precision: str) -> TinyExport:
    """Export into `folder`; does nothing if another process has done so."""
    checkpoint, repository = folder / "tiny", folder / "repository"
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock", wait=True):
        if not checkpoint.exists():
            tiny_checkpoint(checkpoint, family, num_hidden_layers=2)
        manifest = export(str(checkpoint), repository=repository, precision=precision)
    return TinyExport(checkpoint, repository, manifest)
