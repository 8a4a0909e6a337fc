"""Layout and manifest of late interaction in a model repository."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank_build.contract import BACKENDS, MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from triton_rerank_build.contract import TOKENIZER as RERANKER_TOKENIZER
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.late_interaction.settings import LateSettings
from triton_rerank_build.repository.layout import Layout, complete_from_template, copy_code, template_repository
from triton_rerank_build.repository.manifest import Manifest
from triton_rerank_build.repository.verify import FLOAT, PADDED_INPUTS, Signature, check_installation
from triton_rerank_build.support.extras import require_build_extra

ENCODER = Path("late_encoder") / "1"
SCORER = Path("late_scorer") / "1"
LATE = Layout(
    "late_interaction",
    ("late_encoder", "late_interaction", "late_scorer"),
    (SCORER / TOKENIZER_FILE, ENCODER / WEIGHTS_FILE, ENCODER / MODEL_FILE),
    (SCORER / MANIFEST_FILE, ENCODER / MANIFEST_FILE),
    retired=("late_tokenizer",),
)
VECTORS: Signature = ("vectors", FLOAT, (None, None))
# Not in model_repository/: Triton loads every folder there, and these models have no artefacts before an export.
TEMPLATES = Path(__file__).parent / "models"


@dataclass(frozen=True)
class LateManifest(Manifest):
    """The record of one export for late interaction; `max_length` is a document's, `parity` compares vectors.

    Attributes:
        settings: Read by the served models.
    """

    settings: LateSettings | None = None

    @classmethod
    def from_json(cls, text: str) -> "LateManifest":
        """Parse what `to_json` wrote.

        Raises:
            RepositoryError: The text is not a manifest of this format.
        """
        manifest = super().from_json(text)
        if not isinstance(manifest, cls) or not isinstance(manifest.settings, Mapping):
            raise RepositoryError(f"{MANIFEST_FILE} lacks the settings of late interaction")
        content: dict[str, Any] = {**vars(manifest), "settings": LateSettings.from_dict(manifest.settings)}
        return cls(**content)


def complete_late(repository: Path) -> None:
    """Copy the committed files of late interaction, as `complete_from_template` does.

    `late_scorer` imports two modules whose one source file belongs to a model of the reranker and to a backend.
    """
    complete_from_template(repository, TEMPLATES, LATE)
    for source in (
        template_repository() / RERANKER_TOKENIZER / "text_pairs.py",
        BACKENDS / "rerank_openvino" / "micro_batch_cuts.py",
    ):
        copy_code(source, repository / SCORER / source.name)


def retire_late(repository: Path, *, force: bool) -> None:
    """Remove the models of an earlier release, whose configurations do not fit the code of this one.

    `verify` and `serve` still take such an installation as it is.

    Raises:
        RepositoryError: There are some, and `force` is not given.
    """
    old = [name for name in LATE.retired if (repository / name / "config.pbtxt").is_file()]
    if not old:
        return
    if not force:
        raise RepositoryError(
            f"{repository} holds late interaction of an earlier release, with a model {old[0]}, which `serve` takes. "
            "--force replaces it, and your changes of late_scorer/config.pbtxt with it: note them first"
        )
    for name in (*old, LATE.ensemble, SCORER.parent.name):
        shutil.rmtree(repository / name, ignore_errors=True)


def read_late_manifest(repository: Path) -> LateManifest | None:
    """The manifest of a complete installation; None if nothing is installed.

    Raises:
        RepositoryError: The file exists but cannot be read.
    """
    path = repository / LATE.manifests[-1]
    return LateManifest.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def verify_late(repository: str | Path = "model_repository") -> LateManifest | None:
    """As `verify`, for late interaction; None if it is not installed.

    Raises:
        RepositoryError: A file changed; the message lists every difference.
    """
    require_build_extra()
    repository = Path(repository)
    if (manifest := read_late_manifest(repository)) is not None:
        check_installation(repository, manifest, LATE, {repository / ENCODER / MODEL_FILE: PADDED_INPUTS}, VECTORS)
    return manifest
