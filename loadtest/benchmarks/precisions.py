"""Speed and size of a checkpoint's artefacts in each precision and runtime, against fp32 in OpenVINO.

    PYTHONPATH=loadtest python -m benchmarks.precisions FP32_REPOSITORY [OTHER_REPOSITORY ...]

Each artefact alternates with the first one in this process: their ratio is reproducible on a shared machine, their
seconds are not. Two are in memory at a time.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino

from triton_rerank_build.parity.compare import INT8_PROPERTIES
from triton_rerank_build.repository.layout import padded_graph
from triton_rerank_build.support.progress import format_bytes, release_memory

Feeds = dict[str, np.ndarray]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repositories", type=Path, nargs="+", help="model repositories; the first at fp32")
    parser.add_argument("--pairs", type=int, default=16, help="rows per micro-batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per row (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement (default: %(default)s)")
    options = parser.parse_args()
    manifests = [json.loads((path / "cross_encoder/1/manifest.json").read_text()) for path in options.repositories]
    if manifests[0]["precision"] != "fp32":
        parser.error(f"{options.repositories[0]} is {manifests[0]['precision']}, and the first one must be fp32")
    feeds = batch(options.pairs, options.tokens)
    baseline = load(options.repositories[0], "openvino", "f32")
    whole = size(options.repositories[0])
    ratios = {}
    for repository, manifest in zip(options.repositories, manifests, strict=True):
        print(
            f"{manifest['precision']}: {format_bytes(size(repository))}, {size(repository) / whole:.3f} of fp32",
            flush=True,
        )
        for runtime, precision in ways():
            name = "_".join(filter(None, (manifest["precision"], runtime, precision)))
            print(f"{name} ...", file=sys.stderr)
            ratios[name], pairs_per_s = measure(baseline, load(repository, runtime, precision), feeds, options.rounds)
            print(f"  {name}: {ratios[name]:.2f} times as fast, {pairs_per_s:.1f} pairs/s", flush=True)
            release_memory()
    print("RESULT " + " ".join(f"{name}={ratio:.2f}" for name, ratio in ratios.items()))


def ways() -> list[tuple[str, str]]:
    """Runtimes, with OpenVINO's precision for operations that are not int8; bf16 if the processor supports it."""
    capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [("openvino", "f32"), *([("openvino", "bf16")] if capable else []), ("onnxruntime", "")]


def batch(num_pairs: int, length: int) -> Feeds:
    """Rows without padding, all different."""
    ids = np.random.default_rng(0).integers(5, 500, (num_pairs, length), np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def size(repository: Path) -> int:
    """Bytes of the graph and its weights."""
    return sum(path.stat().st_size for path in (repository / "cross_encoder/1").glob("model.onnx*"))


def load(repository: Path, runtime: str, precision: str) -> Callable[[Feeds], object]:
    """The artefact with the settings of rerank_openvino or of the local onnxruntime backend."""
    path = str(padded_graph(repository / "cross_encoder/1").resolve())
    threads = len(os.sched_getaffinity(0))
    if runtime == "onnxruntime":
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        **INT8_PROPERTIES,
    }
    request = openvino.Core().compile_model(path, "CPU", properties).create_infer_request()
    return lambda feeds: request.infer(feeds, share_inputs=True)


def measure(
    baseline: Callable[[Feeds], object], other: Callable[[Feeds], object], feeds: Feeds, rounds: int
) -> tuple[float, float]:
    """Median speedup over the baseline, and the best pairs per second."""
    seconds = []
    for number in range(rounds + 1):
        pair = [timed(run, feeds) for run in ((baseline, other) if number % 2 else (other, baseline))]
        seconds.append(pair if number % 2 else pair[::-1])
    measured = seconds[1:]  # the first round is the warm-up
    ratio = statistics.median(theirs / ours for theirs, ours in measured)
    return ratio, len(feeds["input_ids"]) / min(ours for _, ours in measured)


def timed(run: Callable[[Feeds], object], feeds: Feeds) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run(feeds)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
