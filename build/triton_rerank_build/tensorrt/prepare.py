"""Write the working folder of a plan: the graph, the rows to check, and the script for `trtexec`."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.contract import CROSS_ENCODER, MANIFEST_FILE, PLAN, TOKENIZER, TOKENIZER_FILE
from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.repository.install import exclusive
from triton_rerank_build.repository.layout import padded_graph
from triton_rerank_build.repository.manifest import Manifest, read_manifest
from triton_rerank_build.repository.verify import differences
from triton_rerank_build.support.extras import require_build_extra
from triton_rerank_build.support.files import cache_folder
from triton_rerank_build.support.progress import Steps, logger
from triton_rerank_build.tensorrt import trtexec
from triton_rerank_build.tensorrt.check import Check, make_checks
from triton_rerank_build.tensorrt.graph import GRAPH_FILE, prepare_graph
from triton_rerank_build.tensorrt.profiles import Profile, check_largest_batch, make_profiles, read_served_shapes

WORK_FOLDER = CROSS_ENCODER / "engine"

_EXPORT_AGAIN = "run: triton-rerank-build export CHECKPOINT --precision fp16 --force"


@dataclass(frozen=True)
class Job:
    """The plan to build, and what it is built from.

    Attributes:
        repository: A model repository with an intact installation.
        manifest: Of that installation.
        profiles: Ranges of shapes that the plan must run.
        timing_cache: File of timings that a later build reuses.
    """

    repository: Path
    manifest: Manifest
    profiles: tuple[Profile, ...]
    timing_cache: Path

    @property
    def work(self) -> Path:
        """The working folder, beside the graph."""
        return self.repository / WORK_FOLDER

    @property
    def graph(self) -> Path:
        """The installed graph of padded rows; TensorRT has no operator for the packed one."""
        return padded_graph(self.repository / CROSS_ENCODER)

    @property
    def profile_texts(self) -> tuple[str, ...]:
        """The profiles as the manifest records them."""
        return tuple(map(str, self.profiles))

    @property
    def is_done(self) -> bool:
        """Whether the repository holds the plan of this graph and these profiles, unchanged."""
        engine, artefact = self.manifest.engine, self.manifest.artefacts.get(PLAN.as_posix())
        if engine is None or artefact is None or engine.profiles != self.profile_texts:
            return False
        return not differences(self.repository, {PLAN.as_posix(): artefact})

    def checks(self) -> list[Check]:
        """The rows that prove the plan, one batch per profile."""
        tokenizer_file = self.repository / TOKENIZER / TOKENIZER_FILE
        return make_checks(tokenizer_file, self.profiles, token_types=self.manifest.token_types)


def make_job(repository: str | Path, timing_cache: str | Path | None = None) -> Job:
    """Read what is installed, and check that a plan can be built from it.

    Raises:
        RepositoryError: It cannot; the message says what to run.
        MissingExtraError: The extra `export` is not installed.
    """
    require_build_extra()
    repository = Path(repository)
    manifest = _read_installed(repository)
    if manifest.precision not in ("fp32", "fp16"):
        raise RepositoryError(
            f"{repository} holds a graph of precision {manifest.precision}, which is for CPUs; {_EXPORT_AGAIN}"
        )
    installed = {name: entry for name, entry in manifest.artefacts.items() if name != PLAN.as_posix()}
    if problems := differences(repository, installed):
        raise RepositoryError(f"{repository} differs from its manifest:\n  " + "\n  ".join(problems))
    served = read_served_shapes(repository, manifest.max_length)
    check_largest_batch(served)
    profiles = make_profiles(served)
    # Absolute, since the script runs in its own folder.
    cache = Path(os.path.abspath(timing_cache or cache_folder() / "tensorrt" / "timing.cache"))
    return Job(repository, manifest, profiles, cache)


def _read_installed(repository: Path) -> Manifest:
    manifest = read_manifest(repository)
    if manifest is None:
        raise RepositoryError(f"{repository} holds no complete installation; {_EXPORT_AGAIN}")
    return manifest


@contextmanager
def exclusive_job(repository: str | Path, timing_cache: str | Path | None = None) -> Iterator[Job]:
    """As `make_job`, and keep exports and other builds out of the repository until the block ends.

    Raises:
        RepositoryError: As `make_job`, or another process is writing an export or a plan.
        MissingExtraError: The extra `export` is not installed.
    """
    _read_installed(Path(repository))  # the lock would make folders where nothing is installed
    with exclusive(Path(repository)):
        yield make_job(repository, timing_cache)


def engine_script(repository: str | Path = "model_repository", *, timing_cache: str | Path | None = None) -> str:
    """The script that builds the plan, as text; nothing is written.

    Args:
        repository: A model repository with an installed graph.
        timing_cache: File of timings that a later build reuses; in the cache folder if None.

    Raises:
        RepositoryError: There is no intact installation that a plan can be built from.
        MissingExtraError: The extra `export` is not installed.
    """
    job = make_job(repository, timing_cache)
    return trtexec.script(job.profiles, job.timing_cache)


def prepare(
    repository: str | Path = "model_repository", *, timing_cache: str | Path | None = None, force: bool = False
) -> Path | None:
    """Write the working folder, and in it the script `build.sh` for a container that has TensorRT.

    Args:
        repository: See `engine_script`.
        timing_cache: See `engine_script`; a path that the container sees too.
        force: Prepare although the repository holds the same plan.

    Returns:
        The script's path; None if there is nothing to do.

    Raises:
        RepositoryError: There is no intact installation that a plan can be built from.
        MissingExtraError: The extra `export` is not installed.
    """
    with exclusive_job(repository, timing_cache) as job:
        remove_work(job)
        if job.is_done and not force:
            logger.info("%s holds this plan already: nothing to do", repository)
            return None
        with Steps(1).step("preparing graph, rows and script"):
            return write_work(job)


def write_work(job: Job) -> Path:
    """Write the working folder anew.

    Returns:
        The script's path.
    """
    if job.manifest.precision == "fp32":
        logger.info("      the installed graph is fp32, and so will be the plan; for speed %s", _EXPORT_AGAIN)
    remove_work(job)
    job.work.mkdir()
    prepare_graph(job.graph.parent)
    for index, check in enumerate(job.checks()):
        for name, tensor in check.inputs().items():
            tensor.tofile(job.work / trtexec.input_file(index, name))
    (job.work / MANIFEST_FILE).write_text(job.manifest.to_json(), encoding="utf-8")
    script = job.work / trtexec.SCRIPT_FILE
    script.write_text(trtexec.script(job.profiles, job.timing_cache), encoding="utf-8")
    return script


def remove_work(job: Job) -> None:
    """Remove the working folder and the rewritten graph."""
    shutil.rmtree(job.work, ignore_errors=True)
    job.graph.with_name(GRAPH_FILE).unlink(missing_ok=True)
