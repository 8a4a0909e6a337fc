"""Tiny checkpoints and the repositories exported from them, one per family and precision in a session."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.tiny_models import tiny_checkpoint
from triton_rerank_build import Manifest, export
from triton_rerank_build.support.files import locked


@dataclass(frozen=True)
class TinyExport:
    """A checkpoint named `tiny` and the repository that holds its export. Tests that change one take a copy."""

    checkpoint: Path
    repository: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        return self.repository / "cross_encoder/1/model.onnx"


TinyExports = Callable[[str, str], TinyExport]
"""(family, precision) -> its export."""


def tiny_export(folder: Path, family: str, precision: str) -> TinyExport:
    """Export into `folder`; does nothing if another process has done so."""
    checkpoint, repository = folder / "tiny", folder / "repository"
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock", wait=True):
        if not checkpoint.exists():
            tiny_checkpoint(checkpoint, family)
        manifest = export(str(checkpoint), repository=repository, precision=precision)
    return TinyExport(checkpoint, repository, manifest)
