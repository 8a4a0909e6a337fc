"""`engine`: from the installed ONNX graph to a proved TensorRT plan beside it.

The work has three steps, because the GPU is often in a container that has TensorRT and nothing of this project:
`prepare` writes a working folder (graph, rows to check, a script of `trtexec` commands), the script makes the plan and
runs it, `install` compares what it computed with the graph and puts it into place. `build_engine` does all three here.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from triton_rerank_build._errors import BuildError
from triton_rerank_build._extras import require_build_extra
from triton_rerank_build._manifest import Manifest
from triton_rerank_build._progress import Steps, logger
from triton_rerank_build.tensorrt import trtexec
from triton_rerank_build.tensorrt.prepare import (
    Job,
    exclusive,
    found_by_trtexec,
    install_proved,
    make_job,
    prepare_work,
    prove,
    remove_work,
)


def engine_script(repository: str | Path = "model_repository", *, timing_cache: str | Path | None = None) -> str:
    """The commands that make the plan, as a bash script to read; nothing is written.

    Args:
        repository: A model repository with an installed graph.
        timing_cache: File of timings that a later build reuses; in the cache folder if None.

    Raises:
        RepositoryError: There is no intact installation that a plan can be built from.
        MissingExtraError: The extra `build` is not installed.
    """
    job = _job(repository, timing_cache)
    return trtexec.script(job.profiles, job.timing_cache)


def prepare(
    repository: str | Path = "model_repository", *, timing_cache: str | Path | None = None, force: bool = False
) -> Path | None:
    """Write the working folder, and in it the script `build.sh` for a container that has TensorRT.

    Args:
        repository: See `engine_script`.
        timing_cache: See `engine_script`; a path that the container sees too.
        force: Prepare although the same plan is there.

    Returns:
        The script's path; None if there is nothing to do.

    Raises:
        RepositoryError: There is no intact installation that a plan can be built from.
        MissingExtraError: The extra `build` is not installed.
    """
    job = _job(repository, timing_cache)
    with exclusive(job.repository):
        remove_work(job)
        if job.is_done and not force:
            logger.info("%s holds this plan already: nothing to do", repository)
            return None
        with Steps(1).step("preparing graph, rows and script"):
            return prepare_work(job)


def install(repository: str | Path = "model_repository") -> Manifest:
    """Compare what the script computed with the graph, and put the plan into place.

    Returns:
        The manifest, the plan among its artefacts.

    Raises:
        ParityError: The plan does not compute what the graph computes; it is not installed.
        RepositoryError: `prepare` or its script has not run, or the repository changed since.
        MissingExtraError: The extra `build` is not installed.
    """
    job = _job(repository, None)
    with exclusive(job.repository):
        if not job.work.is_dir() and job.is_done:
            logger.info("%s holds this plan already: nothing to do", repository)
            return job.manifest
        return _install_from_script(job, Steps(2))


def build_engine(
    repository: str | Path = "model_repository", *, timing_cache: str | Path | None = None, force: bool = False
) -> Manifest:
    """Build the plan on this machine's GPU with `trtexec`, prove it, and install it.

    Args:
        repository: See `engine_script`.
        timing_cache: See `engine_script`.
        force: Build although the same plan is there.

    Returns:
        The manifest, the plan among its artefacts.

    Raises:
        ParityError: The plan does not compute what the graph computes; it is not installed.
        RepositoryError: There is no intact installation that a plan can be built from.
        BuildError: `trtexec` is not on PATH, or failed.
        MissingExtraError: The extra `build` is not installed.
    """
    job = _job(repository, timing_cache)
    if job.is_done and not force:
        logger.info("%s holds this plan already: nothing to do", repository)
        return job.manifest
    if shutil.which("trtexec") is None:
        raise BuildError(
            "trtexec is not on PATH: run `triton-rerank-build engine` where TensorRT is installed, or in three steps: "
            f"`triton-rerank-build engine --prepare`, {job.work / trtexec.SCRIPT_FILE} in NVIDIA's TensorRT container, "
            "`triton-rerank-build engine --install`"
        )
    steps = Steps(4)
    with exclusive(job.repository):
        with steps.step("preparing graph, rows and script"):
            script = prepare_work(job)
        with steps.step(f"building {len(job.profiles)} profiles in TensorRT, which takes minutes"):
            _run(script)
        return _install_from_script(job, steps)


def _job(repository: str | Path, timing_cache: str | Path | None) -> Job:
    require_build_extra()
    return make_job(Path(repository), None if timing_cache is None else Path(timing_cache))


def _run(script: Path) -> None:
    # Its hundreds of lines are the progress; results alone go to stdout.
    done = subprocess.run(["bash", str(script)], stdout=sys.stderr, check=False)
    if done.returncode:
        raise BuildError(f"trtexec failed with status {done.returncode}; its words are above and in {script.parent}")


def _install_from_script(job: Job, steps: Steps) -> Manifest:
    with steps.step("comparing the plan with the graph"):
        engine = prove(job, *found_by_trtexec(job))
    with steps.step(f"installing into {job.repository}"):
        return install_proved(job, engine)
