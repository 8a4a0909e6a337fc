"""Install artefacts into a model repository, so that it is always the old one, the new one, or visibly incomplete.

The manifests are removed first and written last: where a manifest exists, every file that it names is in place.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from triton_rerank_build.contract import MANIFEST_FILE, PLAN
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.repository.layout import MANIFESTS, RERANKER, Layout
from triton_rerank_build.repository.manifest import Artefact, Manifest
from triton_rerank_build.support.files import locked, temporary_folder
from triton_rerank_build.support.progress import format_bytes, logger

VERSION_FILE = "checkpoint.txt"
"""In an ensemble's version folder: what its number stands for."""


def check_writable(repository: Path) -> None:
    """Check, without writing, that `repository` can be made or written.

    Raises:
        RepositoryError: It is a file, read-only, or below something that is.
    """
    existing = next(path for path in (repository, *repository.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RepositoryError(f"{existing} is a file, not a model repository")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RepositoryError(f"{existing} is read-only; name a repository that can be written with --repository")


@contextmanager
def exclusive(repository: Path, layout: Layout = RERANKER) -> Iterator[None]:
    """Keep other exports and engine builds out of `repository` until the block ends.

    Whatever decides about an installation must be read inside the block: another export may have ended just before it.

    Raises:
        RepositoryError: Another process is writing here, or the repository cannot be written.
    """
    with ExitStack() as stack:
        try:
            for path in layout.manifests:
                (repository / path).parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(repository / layout.home / "export.lock.tmp", wait=False))
        except BlockingIOError as error:
            raise RepositoryError(f"another export or engine build is writing into {repository}") from error
        except OSError as error:
            raise RepositoryError(f"{repository} cannot be written: {error.strerror}: {error.filename}") from error
        yield


@contextmanager
def staging(repository: Path, needed_bytes: int, layout: Layout = RERANKER) -> Iterator[Path]:
    """A temporary folder in the file system of `repository`, for callers that hold `exclusive`.

    Args:
        repository: Where the artefacts will go.
        needed_bytes: Size of what will be written; the free space is checked first.
        layout: The layout of what is exported.

    Raises:
        RepositoryError: There is too little free space.
    """
    home = repository / layout.home
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise RepositoryError(
            f"{repository} has {format_bytes(free)} free; the export writes {format_bytes(needed_bytes)} "
            "beside the installed files"
        )
    with temporary_folder(home, "export") as folder:
        yield folder


def measure(staged: Path, layout: Layout = RERANKER) -> dict[str, Artefact]:
    """Size and hash of every staged artefact, by its path inside the repository."""
    made = [path for path in layout.optional if (staged / path.name).is_file()]
    return {path.as_posix(): Artefact.of(staged / path.name) for path in (*layout.artefacts, *made)}


def install(staged: Path, repository: Path, manifest: Manifest, layout: Layout = RERANKER) -> None:
    """Move staged artefacts into place.

    Args:
        staged: Folder from `staging`, with a file for each of the manifest's artefacts.
        repository: The repository that the folder was made for.
        manifest: Names the artefacts; written last.
        layout: The layout of what is installed.
    """
    replaced = (repository / layout.manifests[-1]).is_file()
    # A plan belongs to the graph that is replaced.
    for path in (*layout.manifests, *layout.derived, *layout.optional):
        (repository / path).unlink(missing_ok=True)
    for name in manifest.artefacts:
        _publish(staged / Path(name).name, repository / name)
    mark_version(repository, manifest, layout)
    _publish_manifests(staged, repository, manifest, layout)
    if replaced:
        logger.info("      a server that runs from %s keeps the old model: restart it", repository)


def mark_version(repository: Path, manifest: Manifest, layout: Layout = RERANKER) -> None:
    """Give the ensemble a version folder with the manifest's number, and remove that of an earlier export.

    Triton serves the highest number, so folder 1 of the committed files may stay. Each of its answers then names the
    model that computed it, and a request can demand this model: the client scores no call with two of them.

    Args:
        repository: Model repository folder.
        manifest: Of the installation.
        layout: Its layout.
    """
    home, folder = repository / layout.ensemble, repository / layout.ensemble / str(manifest.model_version)
    if not (folder / VERSION_FILE).is_file():  # a file, since tools that copy repositories may leave out empty folders
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VERSION_FILE).write_text(f"{manifest.checkpoint} {manifest.revision} {manifest.precision}\n", "utf-8")
    for other in home.iterdir():
        if other.name.isdecimal() and other.name not in ("1", folder.name):
            shutil.rmtree(other)


def install_plan(staged: Path, repository: Path, manifest: Manifest) -> None:
    """Move a plan into place beside the graph that it was built from.

    Args:
        staged: Folder in the same file system that holds the plan.
        repository: The repository of the graph.
        manifest: Names the plan among its artefacts; written last.
    """
    for path in MANIFESTS:
        (repository / path).unlink(missing_ok=True)
    _publish(staged / PLAN.name, repository / PLAN)
    _publish_manifests(staged, repository, manifest, RERANKER)
    logger.info("      a server that runs from %s keeps the model that it has loaded: restart it", repository)


def _publish_manifests(staged: Path, repository: Path, manifest: Manifest, layout: Layout) -> None:
    for path in layout.manifests:
        file = staged / MANIFEST_FILE
        file.write_text(manifest.to_json(), encoding="utf-8")
        _publish(file, repository / path)


def _publish(source: Path, target: Path) -> None:
    # Triton may run as another user than the builder.
    source.chmod(0o644)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
