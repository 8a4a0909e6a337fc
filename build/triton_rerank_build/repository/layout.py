"""Paths of an ensemble's files in a model repository, and the committed files that a new repository starts from."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.contract import (
    CROSS_ENCODER,
    MANIFEST_FILE,
    MODEL_FILE,
    PADDED_FILE,
    PLAN,
    REFERENCE_FILE,
    TOKENIZER,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from triton_rerank_build.errors import RepositoryError

# In installation order; the manifest beside the graph comes last and marks the installation as complete.
MANIFESTS = (TOKENIZER / MANIFEST_FILE, CROSS_ENCODER / MANIFEST_FILE)
ARTEFACTS = (TOKENIZER / TOKENIZER_FILE, CROSS_ENCODER / WEIGHTS_FILE, CROSS_ENCODER / MODEL_FILE)
# At fp16 only.
OPTIONAL_ARTEFACTS = (CROSS_ENCODER / PADDED_FILE, CROSS_ENCODER / REFERENCE_FILE)


@dataclass(frozen=True)
class Layout:
    """Paths of an ensemble's generated files in a repository.

    Attributes:
        ensemble: Name of the ensemble.
        models: Folders of the ensemble and of the models it needs.
        artefacts: Generated files of every export, in installation order.
        manifests: The same file beside each model; if the last one exists, the installation is complete.
        optional: Generated files of some exports. Those that an export lacks are removed when it is installed.
        derived: Files that other commands make from the artefacts; removed when the artefacts are replaced.
        retired: Folders of models that earlier releases installed for the ensemble.
    """

    ensemble: str
    models: tuple[str, ...]
    artefacts: tuple[Path, ...]
    manifests: tuple[Path, ...]
    optional: tuple[Path, ...] = ()
    derived: tuple[Path, ...] = ()
    retired: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """The folder of the graph; staging folders are made in it."""
        return self.manifests[-1].parent


RERANKER = Layout(
    "reranker", ("cross_encoder", "reranker", "tokenizer"), ARTEFACTS, MANIFESTS, OPTIONAL_ARTEFACTS, (PLAN,)
)


def padded_graph(folder: Path) -> Path:
    """The graph of padded rows in a folder of artefacts, for OpenVINO and TensorRT: `PADDED_FILE` or `MODEL_FILE`."""
    padded = folder / PADDED_FILE
    return padded if padded.is_file() else folder / MODEL_FILE


def template_repository() -> Path:
    """The committed model repository: inside the package in a wheel, beside `build/` in a checkout.

    Raises:
        RepositoryError: Neither folder exists.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "model_repository", package.parents[1] / "model_repository"):
        if (folder / "cross_encoder").is_dir():
            return folder
    raise RepositoryError("the installed package lacks its model repository; reinstall triton-rerank-build")


def complete_from_template(repository: Path, template: Path, layout: Layout = RERANKER) -> None:
    """Copy the committed files of `template` into `repository`.

    Python files are this release's code and replace other versions. Configuration files that are there stay as they
    are: a user may have edited them.
    """
    for source in sorted(path for model in layout.models for path in (template / model).rglob("*")):
        # The template of a checkout may contain generated files.
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
