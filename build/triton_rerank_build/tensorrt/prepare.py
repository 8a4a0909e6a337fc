"""The steps of `engine`: what is to be built, its working folder, and how a plan is proved and installed."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank_build._errors import RepositoryError
from triton_rerank_build._export import MODEL_FILE
from triton_rerank_build._files import cache_folder, locked
from triton_rerank_build._manifest import MANIFEST_FILE, Artefact, Engine, Manifest, now
from triton_rerank_build._progress import logger
from triton_rerank_build._repository import (
    CROSS_ENCODER,
    PLAN,
    TOKENIZER,
    TOKENIZER_FILE,
    differences,
    install_plan,
    read_manifest,
)
from triton_rerank_build.tensorrt import trtexec
from triton_rerank_build.tensorrt.graph import GRAPH_FILE, prepare_graph
from triton_rerank_build.tensorrt.profiles import Profile, make_profiles, read_served_shapes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from triton_rerank_build.tensorrt.check import Check

WORK_FOLDER = CROSS_ENCODER / "engine"

_EXPORT_AGAIN = "run: triton-rerank-build export CHECKPOINT --precision fp16 --force"


@dataclass(frozen=True)
class Job:
    """What is to be built, and from what.

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
        """The installed graph."""
        return self.repository / CROSS_ENCODER / MODEL_FILE

    @property
    def rewritten_graph(self) -> Path:
        """The same as TensorRT reads it."""
        return self.graph.with_name(GRAPH_FILE)

    @property
    def is_done(self) -> bool:
        """Whether the plan of this graph and these profiles lies there, untouched."""
        engine, artefact = self.manifest.engine, self.manifest.artefacts.get(PLAN.as_posix())
        if engine is None or artefact is None or engine.profiles != _texts(self.profiles):
            return False
        return not differences(self.repository, {PLAN.as_posix(): artefact})


def make_job(repository: Path, timing_cache: Path | None = None) -> Job:
    """Read what is installed, and check that a plan can be made of it.

    Raises:
        RepositoryError: It can not; the message says what to run.
    """
    manifest = read_manifest(repository)
    if manifest is None:
        raise RepositoryError(f"{repository} holds no complete installation; {_EXPORT_AGAIN}")
    if manifest.precision not in ("fp32", "fp16"):
        raise RepositoryError(
            f"{repository} holds a graph of precision {manifest.precision}, which is for CPUs; {_EXPORT_AGAIN}"
        )
    installed = {name: entry for name, entry in manifest.artefacts.items() if name != PLAN.as_posix()}
    if problems := differences(repository, installed):
        raise RepositoryError(f"{repository} is not as its manifest says:\n  " + "\n  ".join(problems))
    profiles = make_profiles(read_served_shapes(repository, manifest.max_length))
    # Absolute, since the script runs in its own folder.
    cache = Path(os.path.abspath(timing_cache or cache_folder() / "tensorrt" / "timing.cache"))
    return Job(repository, manifest, profiles, cache)


@contextmanager
def exclusive(repository: Path) -> Iterator[None]:
    """Keep exports and other plans out of the repository meanwhile.

    Raises:
        RepositoryError: One is being made.
    """
    try:
        # The lock of an export: both write the manifest.
        with locked(repository / CROSS_ENCODER / "export.lock.tmp", wait=False):
            yield
    except BlockingIOError as error:
        raise RepositoryError(f"an export or another plan is being written into {repository}") from error


def prepare_work(job: Job) -> Path:
    """Make the working folder: graph, rows to check and the script, whose path is returned."""
    if job.manifest.precision == "fp32":
        logger.info("      the installed graph is fp32, and so will be the plan; for speed %s", _EXPORT_AGAIN)
    remove_work(job)
    job.work.mkdir()
    prepare_graph(job.graph.parent)
    for index, check in enumerate(checks_of(job)):
        for name, tensor in check.inputs().items():
            tensor.tofile(job.work / trtexec.input_file(index, name))
    (job.work / MANIFEST_FILE).write_text(job.manifest.to_json(), encoding="utf-8")
    script = job.work / trtexec.SCRIPT_FILE
    script.write_text(trtexec.script(job.profiles, job.timing_cache), encoding="utf-8")
    return script


def found_by_trtexec(job: Job) -> "tuple[list[npt.NDArray[np.float32]], str, str]":
    """What the script left: logits per profile, TensorRT's version, the GPU's name.

    Raises:
        RepositoryError: The working folder is not there, not of this graph, or the script has not run to its end.
    """
    from triton_rerank_build.tensorrt.check import read_trtexec_output

    prepared = job.work / MANIFEST_FILE
    if not prepared.is_file():
        raise RepositoryError(f"{job.work} is not prepared; run: triton-rerank-build engine --prepare")
    if Manifest.from_json(prepared.read_text(encoding="utf-8")) != job.manifest:
        raise RepositoryError(
            f"{job.repository} was exported again since {job.work} was made; run: triton-rerank-build engine --prepare"
        )
    needed = [trtexec.PLAN_FILE, trtexec.LOG_FILE, *map(trtexec.output_file, range(len(job.profiles)))]
    if missing := [name for name in needed if not (job.work / name).is_file()]:
        raise RepositoryError(
            f"{job.work} lacks {', '.join(missing)}; run its {trtexec.SCRIPT_FILE} where TensorRT and the GPU are"
        )
    logits = [
        read_trtexec_output(job.work / trtexec.output_file(index), profile.max_shape[0])
        for index, profile in enumerate(job.profiles)
    ]
    return logits, *trtexec.read_log((job.work / trtexec.LOG_FILE).read_text(encoding="utf-8", errors="replace"))


def prove(job: Job, found: "Sequence[npt.NDArray[np.float32]]", version: str, gpu: str) -> Engine:
    """Hold the plan's logits against the graph's.

    Raises:
        ParityError: They differ.
    """
    from triton_rerank_build.tensorrt.check import TOLERANCE, compare_plan, expected_logits

    tolerance = TOLERANCE[job.manifest.precision]
    expected = expected_logits(job.graph, checks_of(job))
    worst = compare_plan(expected, found, tolerance)
    logger.info("      worst difference %.2g", worst)
    num_pairs = sum(len(logits) for logits in expected)
    return Engine(_texts(job.profiles), worst, tolerance, num_pairs, version, gpu, now())


def install_proved(job: Job, engine: Engine) -> Manifest:
    """Put the plan into place, write both manifests, and remove the working folder."""
    artefact = Artefact.of(job.work / trtexec.PLAN_FILE)
    artefacts = {**job.manifest.artefacts, PLAN.as_posix(): artefact}
    manifest = replace(job.manifest, artefacts=artefacts, engine=engine)
    install_plan(job.work, job.repository, manifest)
    remove_work(job)
    return manifest


def remove_work(job: Job) -> None:
    """Remove the working folder and the rewritten graph."""
    shutil.rmtree(job.work, ignore_errors=True)
    job.rewritten_graph.unlink(missing_ok=True)


def checks_of(job: Job) -> "list[Check]":
    """The rows that prove the plan, one batch per profile."""
    from triton_rerank_build.tensorrt.check import make_checks

    return make_checks(job.repository / TOKENIZER / TOKENIZER_FILE, job.profiles)


def _texts(profiles: Sequence[Profile]) -> tuple[str, ...]:
    return tuple(map(str, profiles))
