"""Which ensembles of a model repository are complete, and how tritonserver loads these alone."""

from collections.abc import Sequence
from pathlib import Path

from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.late_interaction.repository import LATE, read_late_manifest
from triton_rerank_build.repository.layout import RERANKER, Layout
from triton_rerank_build.repository.manifest import read_manifest
from triton_rerank_build.repository.verify import differences

LAYOUTS = (RERANKER, LATE)
# Hashing the graph and the tokenizer takes some 50 ms. Hashing gigabytes of weights would delay every start.
HASHED_UP_TO_BYTES = 32 << 20


def installed_ensembles(repository: Path, model: str | None = None) -> tuple[Layout, ...]:
    """The ensembles with a manifest, after a check of their files against it.

    Args:
        repository: Model repository folder.
        model: Name of the only ensemble wanted; all of them if None.

    Raises:
        RepositoryError: Nothing is installed, `model` is not, or a file is missing or differs from the manifest.
    """
    installed = tuple(layout for layout in LAYOUTS if (repository / layout.manifests[-1]).is_file())
    if not installed:
        raise _nothing_installed(repository)
    chosen = tuple(layout for layout in installed if model in (None, layout.ensemble))
    if not chosen:
        names = ", ".join(layout.ensemble for layout in installed)
        raise RepositoryError(f"the ensemble {model!r} is not installed in {repository}; installed: {names}")
    problems = [problem for layout in chosen for problem in _problems(repository, layout)]
    if problems:
        raise RepositoryError(
            f"{repository} differs from its manifest:\n  "
            + "\n  ".join(problems)
            + f"\nrepair it with `triton-rerank-build export CHECKPOINT --force --repository {repository}`"
        )
    return chosen


def load_arguments(repository: Path, chosen: Sequence[Layout]) -> tuple[str, ...]:
    """Tritonserver's options that leave out the models of every other ensemble.

    Triton ends at start if a model fails to load, as one without its generated files does.
    """
    others = {model for layout in LAYOUTS if layout not in chosen for model in (*layout.models, *layout.retired)}
    folders = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    if not others & folders:
        return ()
    return ("--model-control-mode=explicit", *(f"--load-model={model}" for model in sorted(folders - others)))


def _problems(repository: Path, layout: Layout) -> list[str]:
    configs = [f"{model}/config.pbtxt" for model in layout.models]
    missing = [f"{config} is missing" for config in configs if not (repository / config).is_file()]
    manifest = read_manifest(repository) if layout is RERANKER else read_late_manifest(repository)
    artefacts = manifest.artefacts if manifest is not None else {}
    return missing + differences(repository, artefacts, hashed_up_to=HASHED_UP_TO_BYTES)


def _nothing_installed(repository: Path) -> RepositoryError:
    for model in RERANKER.models:
        if not (repository / model / "config.pbtxt").is_file():
            return RepositoryError(
                f"{repository} is not a reranker repository: {model}/config.pbtxt is missing; "
                f"make one with `triton-rerank-build export CHECKPOINT --repository {repository}`"
            )
    return RepositoryError(
        f"no checkpoint is installed in {repository} ({RERANKER.manifests[-1]} is missing): "
        f"run `triton-rerank-build export CHECKPOINT --repository {repository}`, or `export demo` to try it"
    )
