"""Put artefacts into a model repository: it is always the old one, or the new one, or visibly incomplete.

The manifests are removed first and written last: where one is, everything that it names is in place.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build._errors import RepositoryError
from triton_rerank_build._export import MODEL_FILE, WEIGHTS_FILE
from triton_rerank_build._files import locked, temporary_folder
from triton_rerank_build._manifest import MANIFEST_FILE, Artefact, Manifest
from triton_rerank_build._progress import format_bytes

CROSS_ENCODER = Path("cross_encoder") / "1"
TOKENIZER = Path("tokenizer") / "1"
TOKENIZER_FILE = "tokenizer.json"
PLAN = CROSS_ENCODER / "model.plan"
# This project's own Triton backends, one folder each.
BACKENDS = Path(__file__).parent / "backends"
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
    package = Path(__file__).parent
    for folder in (package / "model_repository", package.parents[1] / "model_repository"):
        if (folder / "cross_encoder").is_dir():
            return folder
    raise RepositoryError("this installation carries no model repository to copy from; reinstall triton-rerank")


def read_manifest(repository: Path) -> Manifest | None:
    """The manifest of a complete installation, None where there is none.

    Raises:
        RepositoryError: The file is there but cannot be read.
    """
    path = repository / CROSS_ENCODER / MANIFEST_FILE
    return Manifest.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


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


@contextmanager
def staging(repository: Path, needed_bytes: int, layout: Layout = RERANKER) -> Iterator[Path]:
    """A temporary folder in the file system of `repository`, for one export at a time.

    Args:
        repository: Where the artefacts will go.
        needed_bytes: What will be written; checked against the free space first.
        layout: Of what is exported.

    Raises:
        RepositoryError: Too little space, or another export is writing here.
    """
    home = repository / layout.home
    for path in layout.manifests:
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise RepositoryError(
            f"{repository} has {format_bytes(free)} free; the export writes {format_bytes(needed_bytes)} "
            "beside what is there"
        )
    try:
        with locked(home / "export.lock.tmp", wait=False), temporary_folder(home, "export") as folder:
            yield folder
    except BlockingIOError as error:
        raise RepositoryError(f"another export is writing into {repository}") from error


def measure(staged: Path, layout: Layout = RERANKER) -> dict[str, Artefact]:
    """Size and hash of every staged artefact, by its path inside the repository."""
    return {path.as_posix(): Artefact.of(staged / path.name) for path in layout.artefacts}


def install(staged: Path, repository: Path, manifest: Manifest, layout: Layout = RERANKER) -> None:
    """Move staged artefacts into place.

    Args:
        staged: Folder from `staging`, with one file for each of the layout's artefacts.
        repository: The one it was made for.
        manifest: Written last.
        layout: Of what is installed.
    """
    # A plan of the graph that is replaced goes with it.
    for path in (*layout.manifests, *layout.derived):
        (repository / path).unlink(missing_ok=True)
    for path in layout.artefacts:
        _publish(staged / path.name, repository / path)
    _publish_manifests(staged, repository, manifest, layout)


def install_plan(staged: Path, repository: Path, manifest: Manifest) -> None:
    """Move a plan into place beside the graph that it was built from.

    Args:
        staged: Folder in the same file system that holds it.
        repository: The one it was made for.
        manifest: With the plan among its artefacts; written last.
    """
    for path in MANIFESTS:
        (repository / path).unlink(missing_ok=True)
    _publish(staged / PLAN.name, repository / PLAN)
    _publish_manifests(staged, repository, manifest, RERANKER)


def _publish_manifests(staged: Path, repository: Path, manifest: Manifest, layout: Layout) -> None:
    for path in layout.manifests:
        file = staged / MANIFEST_FILE
        file.write_text(manifest.to_json(), encoding="utf-8")
        _publish(file, repository / path)


def _publish(source: Path, target: Path) -> None:
    # Triton may run as another user, and reads what the builder wrote.
    source.chmod(0o644)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)


def differences(repository: Path, artefacts: Mapping[str, Artefact]) -> list[str]:
    """What no longer is as the manifest says, one sentence per file; nothing if all is well."""
    problems = []
    for name, wanted in artefacts.items():
        path = repository / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != wanted.bytes:
            problems.append(f"{name} has {size} bytes, the manifest says {wanted.bytes}")
        elif (found := Artefact.of(path)).sha256 != wanted.sha256:
            problems.append(f"{name} has sha256 {found.sha256[:16]}..., the manifest says {wanted.sha256[:16]}...")
    return problems
