"""Where the files of an ensemble lie in a model repository, and the committed files that it starts from."""

import shutil
import tempfile
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
    """Copy the committed files of `template` into `repository`.

    Python files are this release's code and replace other versions. Configuration files that are there stay as they
    are: a user may have edited them.
    """
    for source in sorted(path for model in layout.models for path in (template / model).rglob("*")):
        # The template of a checkout may hold generated files as well.
        target = repository / source.relative_to(template)
        if source.suffix == ".py":
            copy_code(source, target)
        elif (source.suffix == ".pbtxt" or source.name == ".gitkeep") and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def copy_code(source: Path, target: Path) -> None:
    """Copy a Python file unless `target` has its content. The target is replaced at once, never half written."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.", suffix=".tmp", delete=False) as file:
        file.write(content)
    written = Path(file.name)
    written.chmod(0o644)  # Triton may run as another user
    written.replace(target)
