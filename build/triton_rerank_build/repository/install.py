"""Put artefacts into a model repository: it is always the old one, or the new one, or visibly incomplete.

The manifests are removed first and written last: where one is, everything that it names is in place.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_rerank_build.contract import MANIFEST_FILE, PLAN
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.repository.layout import MANIFESTS, RERANKER, Layout
from triton_rerank_build.repository.manifest import Artefact, Manifest
from triton_rerank_build.support.files import locked, temporary_folder
from triton_rerank_build.support.progress import format_bytes


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
