"""Triton backend `rerank_openvino`: runs the cross-encoder's ONNX file on a CPU, in OpenVINO.

Triton hands over a list of requests. Their rows are stripped of padding, sorted by length and cut to micro-batches
of about `micro_batch_tokens` tokens, so that no row pays for the length of another, whoever sent it; the logits
are scattered back to the requests they came from.

Stands alone on purpose: beside it only `numpy` and `openvino` are needed, on a laptop and in a container alike.
Every setting is one of the `parameters` of the model's config (see model_repository/cross_encoder/configs/cpu.pbtxt).
"""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils

# Lengths of micro-batches are rounded up to this many tokens: OpenVINO prepares its kernels once per shape, and
# an even number keeps the bf16 units of attention busy.
LENGTH_STEP = 16


class BadRequestError(ValueError):
    """The request itself is wrong: it gets INVALID_ARGUMENT with this message, its neighbours get their answers."""


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Compile the graph, and score once at both ends of the length range so that READY means warm."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        settings = Settings(config)
        folder = Path(args["model_repository"]) / args["model_version"]
        # Links are followed here: the runtimes refuse weights that a link leads out of the model's own folder.
        path = (folder / (config.get("default_model_filename") or "model.onnx")).resolve()
        if not path.exists():
            raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
        core = openvino.Core()
        self.micro_batch_tokens = settings.micro_batch_tokens
        properties = settings.properties(core)
        model = core.read_model(path)
        self.vocab_size, self.max_length = limits(model, folder)
        self.infer_request = core.compile_model(model, "CPU", properties).create_infer_request()
        for length in (LENGTH_STEP, min(self.max_length, 128), min(self.max_length, 512)):
            self.logits([np.zeros(length, np.int32)] * max(1, self.micro_batch_tokens // length))
        pb_utils.Logger.log_info(
            f"{self.name}: OpenVINO {openvino.__version__} on {core.get_property('CPU', 'FULL_DEVICE_NAME')}, "
            f"precision {properties['INFERENCE_PRECISION_HINT']}, {properties['INFERENCE_NUM_THREADS']} threads, "
            f"micro-batches of {self.micro_batch_tokens} tokens"
        )

    def execute(self, requests):
        """Score the rows of all requests together; a request that is wrong or fails is alone in that."""
        responses = [None] * len(requests)
        rows_of = {}
        for place, request in enumerate(requests):
            try:
                rows_of[place] = self.rows(request)
            except BadRequestError as error:
                responses[place] = failure(str(error), pb_utils.TritonError.INVALID_ARG)
        for place, outcome in self.score(requests, rows_of).items():
            responses[place] = outcome
        return responses

    def rows(self, request):
        """The token ids of each row without padding, checked: OpenVINO itself reads past its tables in silence."""
        ids = int32_matrix(request, "input_ids")
        mask = int32_matrix(request, "attention_mask")
        if ids.shape != mask.shape:
            raise BadRequestError(f"input_ids has shape {list(ids.shape)} and attention_mask {list(mask.shape)}")
        lengths = (mask != 0).sum(axis=1)
        if not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None]) or lengths.min() < 1:
            raise BadRequestError("attention_mask must be 1 for the tokens of a row, then 0 for its padding")
        if lengths.max() > self.max_length:
            raise BadRequestError(f"a row has {lengths.max()} tokens, the model takes {self.max_length}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise BadRequestError(f"input_ids must be 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}")
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def score(self, requests, rows_of):
        """Responses by place. Requests that nobody waits for any more are left out before each micro-batch.

        A step of an ensemble is never marked as cancelled, but it carries what is left of its caller's timeout.
        """
        outcomes = {}
        started = time.monotonic()
        timeouts_s = {place: requests[place].timeout() / 1e6 or math.inf for place in rows_of}
        logits = {place: np.empty((len(rows), 1), np.float32) for place, rows in rows_of.items()}
        rows = [(row, place, at) for place, rows in rows_of.items() for at, row in enumerate(rows)]
        for micro_batch in self.micro_batches(rows):
            elapsed_s = time.monotonic() - started
            for place in {place for _, place, _ in micro_batch} - outcomes.keys():
                if elapsed_s > timeouts_s[place]:
                    # Triton's own words for a request that expires in the queue, so that clients know them.
                    outcomes[place] = failure("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)
                elif requests[place].is_cancelled():
                    outcomes[place] = failure("cancelled by the caller", pb_utils.TritonError.CANCELLED)
            live = [item for item in micro_batch if item[1] not in outcomes]
            try:
                scored = self.logits([row for row, _, _ in live]) if live else []
            except RuntimeError as error:  # OpenVINO's own; the instance lives on
                message = f"{self.name}: {str(error).strip().splitlines()[-1]}"
                outcomes |= {place: failure(message, pb_utils.TritonError.INTERNAL) for _, place, _ in live}
                continue
            for (_, place, at), logit in zip(live, scored, strict=True):
                logits[place][at] = logit
        for place in logits.keys() - outcomes.keys():
            outcomes[place] = pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits[place])])
        return outcomes

    def micro_batches(self, rows):
        """Cut (row, ...) tuples, longest first, to lists that hold about `micro_batch_tokens` once padded."""
        rows = sorted(rows, key=lambda item: len(item[0]), reverse=True)
        start = 0
        while start < len(rows):
            size = max(1, self.micro_batch_tokens // padded_length(len(rows[start][0]), self.max_length))
            yield rows[start : start + size]
            start += size

    def logits(self, rows):
        """Run one micro-batch of token id rows: [num_rows, 1] float32."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        mask = np.arange(padded_length(int(lengths.max()), self.max_length)) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int32)
        ids[mask] = np.concatenate(rows)
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int32)}
        # A copy: the next micro-batch writes its logits to the same memory.
        return self.infer_request.infer(feeds, share_inputs=True)["logits"].copy()


class Settings:
    """The `parameters` of the config, as OpenVINO wants them."""

    def __init__(self, config):
        values = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.micro_batch_tokens = int(values["micro_batch_tokens"])
        self.precision = values["precision"]
        self.threads = int(values["threads"])
        self.cache = values.get("compiled_model_cache") or os.environ.get("RERANK_OPENVINO_CACHE", "")
        self.instances = sum(group.get("count", 1) for group in config["instance_group"])

    def properties(self, core):
        """OpenVINO's compile properties."""
        precision = self.precision
        if precision == "auto":
            capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bf16" if capable else "f32"
        threads = self.threads or max(1, len(os.sched_getaffinity(0)) // self.instances)
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            # One stream: every core works on the same micro-batch. Two streams give the same throughput and
            # double the time of a single document.
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Where a graph has int8 weights, what meets them is quantized as well, this many values to a scale. More
            # to a scale is no faster and ranks worse; fewer take a fifth more time.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128,
        }
        if self.cache:
            properties["CACHE_DIR"] = self.cache
        return properties


def limits(model, folder):
    """Vocabulary size and longest row: OpenVINO checks neither, so what is beyond has to be refused before.

    The largest embedding table is that of the words; the length is in the builder's manifest.
    """
    tables = [
        node.input(0).get_partial_shape()[0].get_length()
        for node in model.get_ops()
        if node.get_type_name() == "Gather"
        and node.input(0).get_partial_shape().rank.get_length() == 2
        and node.input(0).get_partial_shape().is_static
    ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return max(tables), manifest["max_length"]


def padded_length(length, max_length):
    """`length` rounded up to the length of a micro-batch."""
    return min(-(-length // LENGTH_STEP) * LENGTH_STEP, max_length)


def int32_matrix(request, name):
    """An input tensor [num_pairs, length]."""
    tensor = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if tensor.ndim != 2 or tensor.shape[1] < 1:
        raise BadRequestError(f"{name} must have shape [num_pairs, length], got {list(tensor.shape)}")
    return tensor


def failure(message, code):
    """An error answer to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
