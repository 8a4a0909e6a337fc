"""Where the files of an ensemble lie in a model repository, and the committed files that it starts from."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.contract import (
    CROSS_ENCODER,
    MANIFEST_FILE,
    MODEL_FILE,
    PLAN,
    TOKENIZER,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from triton_rerank_build.errors import RepositoryError

# In the order of installing. Beside the graph stands the manifest that counts.
MANIFESTS = (TOKENIZER / MANIFEST_FILE, CROSS_ENCODER / MANIFEST_FILE)
ARTEFACTS = (TOKENIZER / TOKENIZER_FILE, CROSS_ENCODER / WEIGHTS_FILE, CROSS_ENCODER / MODEL_FILE)


@dataclass(frozen=True)
class Layout:
    """Where an ensemble's generated files lie in a repository.

    Attributes:
        ensemble: Its name.
        models: Folders of the ensemble and of the models it needs.
        artefacts: Generated files, in the order of installing.
        manifests: The same file beside each artefact's model; the last one counts, and where it is all is in place.
        derived: What others make of the artefacts, gone when these are replaced.
    """

    ensemble: str
    models: tuple[str, ...]
    artefacts: tuple[Path, ...]
    manifests: tuple[Path, ...]
    derived: tuple[Path, ...] = ()

    @property
    def home(self) -> Path:
        """The folder of the graph, where staging happens."""
        return self.manifests[-1].parent


RERANKER = Layout("reranker", ("cross_encoder", "reranker", "tokenizer"), ARTEFACTS, MANIFESTS, (PLAN,))


def template_repository() -> Path:
    """The committed model repository: inside the package in a wheel, beside `build/` in a checkout.

    Raises:
        RepositoryError: This installation has neither.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "model_repository", package.parents[1] / "model_repository"):
        if (folder / "cross_encoder").is_dir():
            return folder
    raise RepositoryError("this installation carries no model repository to copy from; reinstall triton-rerank")


def complete_from_template(repository: Path, template: Path, layout: Layout = RERANKER) -> None:
    """Copy the committed files of `template` that `repository` lacks; files that are there are left as they are."""
    for source in sorted(path for model in layout.models for path in (template / model).rglob("*")):
        # The template of a checkout may hold generated files as well.
        if source.suffix in {".pbtxt", ".py"} or source.name == ".gitkeep":
            copy_missing(source, repository / source.relative_to(template))


def copy_missing(source: Path, target: Path) -> None:
    """Copy a file unless `target` is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
