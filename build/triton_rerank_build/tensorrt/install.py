"""Compare what the script computed with the ONNX graph, and put the plan and the manifest into the repository."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_build.contract import MANIFEST_FILE, PLAN
from triton_rerank_build.errors import BuildError, RepositoryError
from triton_rerank_build.repository.install import install_plan
from triton_rerank_build.repository.manifest import Artefact, Engine, Manifest, now
from triton_rerank_build.support.progress import Steps, logger
from triton_rerank_build.tensorrt import trtexec
from triton_rerank_build.tensorrt.check import TOLERANCE, compare_plan, expected_logits
from triton_rerank_build.tensorrt.prepare import Job, exclusive_job, remove_work, write_work


def install(repository: str | Path = "model_repository") -> Manifest:
    """Compare what the script computed with the graph, and install the plan.

    Returns:
        The manifest, the plan among its artefacts.

    Raises:
        ParityError: The plan does not compute what the graph computes; it is not installed.
        BuildError: A file that `trtexec` wrote is damaged.
        RepositoryError: `prepare` or its script has not run, or the repository changed since.
        MissingExtraError: The extra `export` is not installed.
    """
    with exclusive_job(repository) as job:
        if not job.work.is_dir() and job.is_done:
            logger.info("%s holds this plan already: nothing to do", repository)
            return job.manifest
        return _install(job, Steps(2))


def build_engine(
    repository: str | Path = "model_repository", *, timing_cache: str | Path | None = None, force: bool = False
) -> Manifest:
    """Prepare, run the script on this machine's GPU, and install.

    Args:
        repository: A model repository with an installed graph.
        timing_cache: File of timings that a later build reuses; in the cache folder if None.
        force: Build although the repository holds the same plan.

    Returns:
        The manifest, the plan among its artefacts.

    Raises:
        ParityError: The plan does not compute what the graph computes; it is not installed.
        RepositoryError: There is no intact installation that a plan can be built from.
        BuildError: `trtexec` is not on PATH, or failed.
        MissingExtraError: The extra `export` is not installed.
    """
    with exclusive_job(repository, timing_cache) as job:
        if job.is_done and not force:
            logger.info("%s holds this plan already: nothing to do", repository)
            return job.manifest
        _require_trtexec(job)
        steps = Steps(4)
        with steps.step("preparing graph, rows and script"):
            script = write_work(job)
        with steps.step(f"building {len(job.profiles)} profiles in TensorRT, which takes minutes"):
            _run(script)
        return _install(job, steps)


def _require_trtexec(job: Job) -> None:
    if shutil.which("trtexec") is None:
        raise BuildError(
            "trtexec is not on PATH: run `triton-rerank-build engine` where TensorRT is installed, or in three steps: "
            f"`triton-rerank-build engine --prepare`, {job.work / trtexec.SCRIPT_FILE} in NVIDIA's TensorRT container, "
            "`triton-rerank-build engine --install`"
        )


def _run(script: Path) -> None:
    # The hundreds of lines that trtexec prints are the progress; stdout is for results alone.
    done = subprocess.run(["bash", str(script)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise BuildError(f"trtexec failed with status {done.returncode}; its output is above and in {script.parent}")


def _install(job: Job, steps: Steps) -> Manifest:
    with steps.step("comparing the plan with the graph"):
        engine = _compare(job, *_read_work(job))
    with steps.step(f"installing into {job.repository}"):
        artefact = Artefact.of(job.work / trtexec.PLAN_FILE)
        artefacts = {**job.manifest.artefacts, PLAN.as_posix(): artefact}
        manifest = replace(job.manifest, artefacts=artefacts, engine=engine)
        install_plan(job.work, job.repository, manifest)
        remove_work(job)
    return manifest


def _read_work(job: Job) -> tuple[list[npt.NDArray[np.float32]], str, str]:
    """What the script left: logits per profile, TensorRT's version, the GPU's name.

    Raises:
        RepositoryError: The working folder is missing, belongs to another graph, or the script has not run to its end.
        BuildError: An output file is damaged.
    """
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
        trtexec.read_output(job.work / trtexec.output_file(index), profile.max_shape[0])
        for index, profile in enumerate(job.profiles)
    ]
    return logits, *trtexec.read_log((job.work / trtexec.LOG_FILE).read_text(encoding="utf-8", errors="replace"))


def _compare(job: Job, found: Sequence[npt.NDArray[np.float32]], version: str, gpu: str) -> Engine:
    """Hold the plan's logits against the graph's.

    Raises:
        ParityError: They differ.
    """
    tolerance = TOLERANCE[job.manifest.precision]
    expected = expected_logits(job.graph, job.checks())
    worst = compare_plan(expected, found, tolerance)
    logger.info("      worst difference %.2g", worst)
    num_pairs = sum(len(logits) for logits in expected)
    return Engine(job.profile_texts, worst, tolerance, num_pairs, version, gpu, now())
