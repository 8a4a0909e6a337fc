"""Build a plan and run it through the Python package `tensorrt`, on a machine with a GPU.

Nothing of this runs elsewhere; tests/gpu covers it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from triton_rerank_build._engine_profiles import Profile
from triton_rerank_build.contract import INPUT_NAMES, OUTPUT_NAME
from triton_rerank_build.errors import BuildError, MissingExtraError
from triton_rerank_build.support.progress import logger

if TYPE_CHECKING:
    from triton_rerank_build._engine_check import Check

# The package ships no types.
TensorRT = Any


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return find_spec("tensorrt") is not None


def require_gpu() -> None:
    """Check, before minutes of building, that the plan can be built and proved here.

    Raises:
        MissingExtraError: The package `tensorrt` is not installed, or PyTorch has no CUDA.
        BuildError: There is no GPU.
    """
    import torch

    if not is_installed():
        raise MissingExtraError(
            "neither trtexec nor the package tensorrt is here; run: pip install tensorrt-cu12==10.5.0 (the release in "
            "Triton's container 24.10), or run what `engine --dry-run` prints in NVIDIA's container"
        )
    if torch.version.cuda is None:
        raise MissingExtraError(
            "this PyTorch was built without CUDA, with which the plan is proved after building; install one with it: "
            "pip install --force-reinstall torch"
        )
    if not torch.cuda.is_available():
        raise BuildError("no NVIDIA GPU is usable here: a plan is built on the kind of GPU that will serve it")


def describe() -> tuple[str, str]:
    """TensorRT's version and the GPU's name."""
    import tensorrt
    import torch

    return str(tensorrt.__version__), torch.cuda.get_device_name()


def build_plan(graph: Path, profiles: Sequence[Profile], timing_cache: Path) -> bytes:
    """Build what `trtexec` builds with the same options.

    Args:
        graph: The rewritten `engine.onnx`, its weights beside it.
        profiles: Ranges of shapes.
        timing_cache: File that is read if it is there, and written.

    Raises:
        BuildError: The graph cannot be parsed, or no plan comes out; TensorRT's own words are in the message.
    """
    import tensorrt as trt

    log = _make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BuildError(f"TensorRT {trt.__version__} cannot parse {graph}: {errors}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.progress_monitor = _make_monitor(trt)
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    for profile in profiles:
        ranges = builder.create_optimization_profile()
        for name in INPUT_NAMES:
            ranges.set_shape(name, profile.min_shape, profile.opt_shape, profile.max_shape)
        config.add_optimization_profile(ranges)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT {trt.__version__} built no plan: {'; '.join(log.errors) or 'it gave no reason'}")
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def run_plan(plan: bytes, checks: "Sequence[Check]") -> list[npt.NDArray[np.float32]]:
    """[batch_size, 1] for each check, computed by its profile.

    Raises:
        BuildError: The plan cannot be loaded or run.
    """
    import tensorrt as trt
    import torch

    log = _make_logger(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"the plan cannot be loaded: {'; '.join(log.errors)}")
    context = engine.create_execution_context()
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    results = []
    for index, check in enumerate(checks):
        context.set_optimization_profile_async(index, stream.cuda_stream)
        tensors = {name: torch.from_numpy(value).cuda() for name, value in check.inputs().items()}
        tensors[OUTPUT_NAME] = torch.empty(check.batch_size, 1, dtype=torch.float32, device="cuda")
        torch.cuda.synchronize()
        for name, tensor in tensors.items():
            if name != OUTPUT_NAME:
                context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise BuildError(f"the plan fails in profile {index}: {'; '.join(log.errors)}")
        stream.synchronize()
        results.append(tensors[OUTPUT_NAME].cpu().numpy())
    return results


def _make_logger(trt: TensorRT) -> Any:  # noqa: ANN401 - a subclass of a type that exists only with the package
    class Logger(trt.ILogger):  # type: ignore[misc]
        """TensorRT's messages through this package's logger; errors are kept for the exception."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                logger.info("      TensorRT: %s", message)
            else:
                logger.debug("TensorRT: %s", message)

    return Logger()


def _make_monitor(trt: TensorRT) -> Any:  # noqa: ANN401
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """A bar per phase of the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.bars: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.bars[phase_name] = tqdm(total=num_steps, desc=phase_name, disable=None, leave=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.bars[phase_name].update(step + 1 - self.bars[phase_name].n)
            return True  # False would end the build

        def phase_finish(self, phase_name: str) -> None:
            self.bars.pop(phase_name).close()

    return Monitor()
