"""Triton backend `encode_openvino`: runs an encoder's ONNX file on a CPU, in OpenVINO: token ids -> vectors.

Unlike `rerank_openvino` it neither drops padding nor joins requests: its caller, `late_scorer`, sends rows of similar
length in batches of the right size.

Runs inside Triton's Python stub; needs only `numpy` and `openvino`, on a laptop and in NVIDIA's container. Every
setting is one of the `parameters` of the model's config (see late_encoder/configs/cpu.pbtxt).
"""

import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils

# One file for all backends, in the folder of `rerank_openvino` beside this one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "rerank_openvino"))
from cpu_quota import usable_cpus

WARM_UP_SHAPES = ((1, 16), (16, 64), (8, 128))


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Compile the graph and run it at several shapes, so that READY means warm."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        folder = Path(args["model_repository"]) / args["model_version"]
        # Links are resolved here: the runtimes refuse weights that a link leads out of the model's own folder.
        path = (folder / (config.get("default_model_filename") or "model.onnx")).resolve()
        if not path.exists():
            raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
        settings = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["settings"]
        self.vocab_size = settings["vocab_size"]
        self.max_length = max(settings[kind]["max_length"] for kind in ("query", "document"))
        core = openvino.Core()
        properties = compile_properties(config, core)
        self.compiled = lambda: core.compile_model(core.read_model(path), "CPU", properties).create_infer_request()
        self.infer_request = self.compiled()
        for rows, length in WARM_UP_SHAPES:
            ids = np.ones((rows, min(length, self.max_length)), np.int32)
            self.vectors(ids, ids)
        pb_utils.Logger.log_info(
            f"{self.name}: OpenVINO {openvino.__version__} on {core.get_property('CPU', 'FULL_DEVICE_NAME')}, "
            f"precision {properties['INFERENCE_PRECISION_HINT']}, {properties['INFERENCE_NUM_THREADS']} threads"
        )

    def execute(self, requests):
        """Answer one request after the other, with an error where the timeout has passed."""
        started = time.monotonic()
        return [self.answer(request, started) for request in requests]

    def answer(self, request, started):
        """The vectors of one request, or an error; the instance goes on."""
        if time.monotonic() - started > (request.timeout() / 1e6 or math.inf):
            # Triton's own words for a request that expires in the queue: clients recognise them.
            return failure("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)
        try:
            ids, mask = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("input_ids", "attention_mask")
            )
            problem = self.problem(ids, mask)
        except Exception as error:  # noqa: BLE001 - shapes beyond 2^31 raise many types; the other requests go on
            problem = f"the request's tensors can't be read: {error!r}"
        if problem:
            return failure(problem, pb_utils.TritonError.INVALID_ARG)
        try:
            vectors = self.vectors(ids, mask)
        except (RuntimeError, MemoryError) as error:  # from OpenVINO
            problem = (str(error).strip() or repr(error)).splitlines()[-1]
        if problem:  # outside the handler: the error's traceback keeps the old graph in memory
            return self.recover(problem, ids)
        return pb_utils.InferenceResponse([pb_utils.Tensor("vectors", vectors)])

    def recover(self, said, ids):
        """The error of a batch that failed, for lack of memory: `late_scorer` sends its rows again, fewer at a time.

        The graph is compiled again: after an allocation that failed, OpenVINO's graph may fail for ever, compute wrong
        numbers, or end the process. If that fails, too, the process ends, and Triton's supervisor starts another.
        """
        message = f"{self.name}: {said}, on {ids.shape[0]} rows of {ids.shape[1]} tokens"
        pb_utils.Logger.log_warn(f"{message}; compiling the graph again")
        self.infer_request = None  # its memory is needed
        try:
            self.infer_request = self.compiled()
        except (RuntimeError, MemoryError):
            traceback.print_exc()
            os._exit(1)
        return failure(message, pb_utils.TritonError.INTERNAL)

    def problem(self, ids, mask):
        """What is wrong with a request, None if nothing: OpenVINO reads beyond its tables without an error."""
        if ids.ndim != 2 or not ids.size or ids.shape != mask.shape:
            return f"input_ids has shape {list(ids.shape)} and attention_mask {list(mask.shape)}"
        if ids.shape[1] > self.max_length:
            return f"a row has {ids.shape[1]} tokens, the model takes {self.max_length}"
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            return f"input_ids must be 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}"
        return None

    def vectors(self, ids, mask):
        """Run one batch: [num_rows, length * dim] float32."""
        feeds = {"input_ids": np.ascontiguousarray(ids), "attention_mask": np.ascontiguousarray(mask)}
        # A copy: the next batch writes its vectors to the same memory.
        return self.infer_request.infer(feeds, share_inputs=True)["vectors"].copy()


def compile_properties(config, core):
    """OpenVINO's compile properties, from the `parameters` of the config."""
    values = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    precision = values["precision"]
    if precision == "auto":
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    instances = sum(group.get("count", 1) for group in config["instance_group"])
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": int(values["threads"]) or max(1, usable_cpus() // instances),
        # One stream: all cores work on the same batch.
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if cache := values.get("compiled_model_cache") or os.environ.get("RERANK_OPENVINO_CACHE", ""):
        properties["CACHE_DIR"] = cache
    return properties


def failure(message, code):
    """An error response to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
