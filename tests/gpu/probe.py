"""What runs on the card, each job in a process of its own: `python -m gpu.probe JOB settings.json result.json`.

So a fault of CUDA ends one job, memory starts from nothing, and what ONNX Runtime prints can be read by the caller.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from gpu.networks import FIRST_PIECE, PIECES
from triton_rerank_build.parity.compare import Batch
from triton_rerank_build.parity.packed import join

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Of config.pbtxt.
CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "enable_skip_layer_norm_strict_mode": "1"}


def open_session(graph, provider, **options):
    """A session as config.pbtxt opens it.

    Args:
        graph: The file.
        provider: ONNX Runtime's.
        options: Of the session.

    Raises:
        RuntimeError: The provider did not start.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    for name, value in options.items():
        setattr(settings, name, value)
    # The optimized graph, where one is saved, leaves its weights in another file.
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    chosen = (CUDA, CUDA_OPTIONS) if provider == CUDA else CPU
    session = onnxruntime.InferenceSession(str(graph), settings, providers=[chosen])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} did not start; ONNX Runtime has {onnxruntime.get_available_providers()}")
    return session


def device(settings):
    """Names and versions."""
    import onnxruntime
    import torch

    facts = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "gpu": None}
    facts["providers"] = onnxruntime.get_available_providers()
    if settings["provider"] == CUDA:
        if CUDA not in facts["providers"]:
            raise SystemExit(f"ONNX Runtime {facts['onnxruntime']} has no {CUDA}: carry onnxruntime-gpu")
        if not torch.cuda.is_available():
            raise SystemExit(f"PyTorch {facts['torch']} has no GPU: take a Python whose PyTorch has CUDA (PYTHON=...)")
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "gpu_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
        }
    return facts


def logits(settings):
    """Logits of the batches of `settings["batches"]`, an npz file with the inputs of one batch under each prefix."""
    options = {}
    if optimized := settings.get("optimized"):
        options["optimized_model_filepath"] = optimized
    session = open_session(settings["graph"], settings["provider"], **options)
    inputs = np.load(settings["batches"])
    found = {}
    for name in settings["names"]:
        feed = {node.name: inputs[f"{name}/{node.name}"] for node in session.get_inputs()}
        found[name] = session.run(None, feed)[0].ravel().tolist()
    return {"logits": found}


def memory(settings):
    """Bytes that a session and one batch take on the card."""
    import torch

    free = [torch.cuda.mem_get_info()[0]]
    session = open_session(settings["graph"], settings["provider"])
    session.run(None, full_rows([16]))
    free.append(torch.cuda.mem_get_info()[0])
    started = time.perf_counter()
    session.run(None, full_rows([settings["tokens"]] * settings["rows"]))
    seconds = time.perf_counter() - started
    free.append(torch.cuda.mem_get_info()[0])
    # The arena keeps what it took, so what is gone after the run is the peak.
    return {"batch_bytes": free[1] - free[2], "all_bytes": free[0] - free[2], "first_run_s": seconds}


def kernels(settings):
    """Milliseconds of each CUDA kernel in one run of the packed graph, by name, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    session = open_session(settings["graph"], settings["provider"])
    found = {}
    for name, lengths in settings["workloads"].items():
        feed = full_rows(lengths)
        for _ in range(3):
            session.run(None, feed)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            session.run(None, feed)
        events = sorted(profiled.key_averages(), key=lambda event: -event.device_time_total)
        found[name] = [(event.key, event.count, event.device_time_total / 1000) for event in events]
    return {"kernels": found}


def full_rows(lengths):
    """Inputs of the packed graph, a request a row, of random tokens: speed depends on what is multiplied."""
    rng = np.random.default_rng(3)
    rows = [rng.integers(FIRST_PIECE, PIECES, (1, length), np.int32) for length in lengths]
    return join([Batch("row", ids, np.ones_like(ids)) for ids in rows])


def main():
    from gpu import limits, peers, speed

    every = (device, logits, memory, kernels, speed.packed, speed.padded, peers.sentence_transformers, peers.varlen)
    every += (limits.noise, limits.largest, limits.instances)
    jobs = {job.__name__: job for job in every}
    job, settings, result = sys.argv[1:]
    answer = jobs[job](json.loads(Path(settings).read_text(encoding="utf-8")))
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
