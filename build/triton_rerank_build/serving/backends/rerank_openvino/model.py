"""Triton backend `rerank_openvino`: runs the cross-encoder's ONNX file on a CPU, in OpenVINO.

Triton hands over lists of requests. Their rows are stripped of padding and wait in a pool, from which micro-batches of
about `micro_batch_tokens` tokens are made of rows of similar length, so that no row pays for the length of another,
whoever sent it. A request is answered when the last of its rows is scored.

Stands alone on purpose: beside it only `numpy` and `openvino` are needed, on a laptop and in a container alike.
Every setting is one of the `parameters` of the model's config (see model_repository/cross_encoder/configs/cpu.pbtxt).
"""

import json
import math
import os
import threading
import time
import traceback
from heapq import merge
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils

# Lengths of micro-batches are rounded up to this many tokens: OpenVINO prepares its kernels once per shape, and
# an even number keeps the bf16 units of attention busy.
LENGTH_STEP = 16
# Micro-batches that are taken from Triton's queue before they are needed. Fewer, and the cores wait for Triton; more,
# and what waits is beyond the reach of its priorities and limits.
AHEAD = 2
# What running the graph once costs apart from its tokens, in tokens: the weights come from memory each time. About 10
# with AVX512, more where arithmetic is faster; 16 to 64 make equally fast cuts (loadtest/benchmarks/micro_batches.py).
RUN_TOKENS = 64


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
        properties = settings.properties(core)
        model = core.read_model(path)
        self.vocab_size, self.max_length = limits(model, folder)
        self.infer_request = core.compile_model(model, "CPU", properties).create_infer_request()
        for length in (LENGTH_STEP, min(self.max_length, 128), min(self.max_length, 512)):
            self.logits([np.zeros(length, np.int32)] * max(1, settings.micro_batch_tokens // length))
        self.pool = Pool(settings.micro_batch_tokens, self.max_length)
        threading.excepthook = end_process
        self.worker = threading.Thread(target=self.work, name="micro-batches", daemon=True)
        self.worker.start()
        pb_utils.Logger.log_info(
            f"{self.name}: OpenVINO {openvino.__version__} on {core.get_property('CPU', 'FULL_DEVICE_NAME')}, "
            f"precision {properties['INFERENCE_PRECISION_HINT']}, {properties['INFERENCE_NUM_THREADS']} threads, "
            f"micro-batches of {settings.micro_batch_tokens} tokens"
        )

    def execute(self, requests):
        """Put the rows of all requests into the pool; a request that is wrong or fails is alone in that.

        Returns before the answers are there, as soon as the pool has room: while an instance executes, Triton 2.51
        prepares no batch ahead where there is a queue policy, and its batcher often sleeps on for up to 500 ms.
        """
        group = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                group.append(Pending(self.rows(request), sender, request.timeout()))
            except BadRequestError as error:
                answer(sender, failure(str(error), pb_utils.TritonError.INVALID_ARG))
        self.pool.add(group)

    def finalize(self):
        """Answer what was taken, then stop."""
        self.pool.close()
        self.worker.join()

    def work(self):
        """Score micro-batch after micro-batch, until the pool is closed and empty."""
        while micro_batch := self.pool.take():
            self.score(micro_batch)

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
        # Copies: the request's memory is Triton's again once execute has returned.
        return [row[:length].copy() for row, length in zip(ids, lengths, strict=True)]

    def score(self, micro_batch):
        """Run (row, pending, place) tuples, and answer the requests that are complete with them.

        Requests that nobody waits for any more are left out: a step of an ensemble is never marked as cancelled, but
        it carries what was left of its caller's timeout.
        """
        for pending in {id(pending): pending for _, pending, _ in micro_batch}.values():
            pending.drop_if_unwanted()
        live = [item for item in micro_batch if not item[1].answered]
        if not live:
            return
        try:
            scored = self.logits([row for row, _, _ in live])
        except (RuntimeError, MemoryError) as error:  # OpenVINO's own: these requests fail, the worker lives on
            message = f"{self.name}: {(str(error).strip() or repr(error)).splitlines()[-1]}"
            for _, pending, _ in live:
                pending.fail(message, pb_utils.TritonError.INTERNAL)
            return
        for (_, pending, place), logit in zip(live, scored, strict=True):
            pending.put(place, logit)

    def logits(self, rows):
        """Run one micro-batch of token id rows: [num_rows, 1] float32."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        mask = np.arange(padded_length(int(lengths.max()), self.max_length)) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int32)
        ids[mask] = np.concatenate(rows)
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int32)}
        # A copy: the next micro-batch writes its logits to the same memory.
        return self.infer_request.infer(feeds, share_inputs=True)["logits"].copy()


class Pending:
    """A request that waits for the logits of its rows."""

    def __init__(self, rows, sender, timeout_us):
        self.rows = rows
        self.logits = np.empty((len(rows), 1), np.float32)
        self.missing = len(rows)
        self.answered = False
        self._sender = sender
        self._deadline = time.monotonic() + (timeout_us / 1e6 or math.inf)

    def put(self, place, logit):
        """Take the logit of one row; the last one answers the request."""
        self.logits[place] = logit
        self.missing -= 1
        if not self.missing:
            self._answer(pb_utils.InferenceResponse([pb_utils.Tensor("logits", self.logits)]))

    def drop_if_unwanted(self):
        """Answer at once where the caller's timeout has passed or the caller is gone."""
        if self.answered:
            return
        if time.monotonic() > self._deadline:
            # Triton's own words for a request that expires in the queue, so that clients know them.
            self.fail("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)
        elif self._sender.is_cancelled():
            self.fail("cancelled by the caller", pb_utils.TritonError.CANCELLED)

    def fail(self, message, code):
        """Answer with an error."""
        if not self.answered:
            self._answer(failure(message, code))

    def _answer(self, response):
        self.answered = True
        answer(self._sender, response)


class Pool:
    """Rows that wait, whoever sent them, and the micro-batches that are made of them."""

    def __init__(self, micro_batch_tokens, max_length):
        self._micro_batch_tokens = micro_batch_tokens
        self._max_length = max_length
        self._groups = []  # of executions, oldest first: lists of (row, pending, place), longest row first
        self._waiting = 0  # tokens
        self._closed = False
        self._changed = threading.Condition()

    def add(self, requests):
        """Take the rows of one execution, then wait until no more than AHEAD micro-batches are waiting."""
        rows = [(row, pending, place) for pending in requests for place, row in enumerate(pending.rows)]
        if not rows:
            return
        with self._changed:
            self._groups.append(sorted(rows, key=lambda item: len(item[0]), reverse=True))
            self._waiting += sum(len(row) for row, _, _ in rows)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting <= AHEAD * self._micro_batch_tokens)

    def take(self):
        """The next micro-batch, at most `micro_batch_tokens` once padded, or one row; nothing when closed and empty.

        The longest row of the oldest execution leads, so that nothing waits for ever; the rows next to it in length
        go with it, from all executions, as many as make the work on all that wait the least.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._groups or self._closed)
            if not self._groups:
                return []
            longest = len(self._groups[0][0][0])
            fitting = list(
                merge(
                    *([item for item in group if len(item[0]) <= longest] for group in self._groups),
                    key=lambda item: len(item[0]),
                    reverse=True,
                )
            )
            taken = fitting[: self._cut([padded_length(len(row), self._max_length) for row, _, _ in fitting])]
            places = {(id(pending), place) for _, pending, place in taken}
            groups = ([item for item in group if (id(item[1]), item[2]) not in places] for group in self._groups)
            self._groups = [group for group in groups if group]
            self._waiting -= sum(len(row) for row, _, _ in taken)
            self._changed.notify_all()
            return taken

    def _cut(self, lengths):
        """How many rows of these padded lengths, longest first, belong together where padding and runs cost least."""
        count = len(lengths)
        costs = [0] * (count + 1)  # of the rows from each place on
        for start in reversed(range(count)):
            length = lengths[start]
            last = min(count, start + max(1, self._micro_batch_tokens // length))
            costs[start], end = min(
                (RUN_TOKENS + length * (end - start) + costs[end], end) for end in range(start + 1, last + 1)
            )
        return end

    def close(self):
        """Let `take` end when all is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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
            # to a scale is hardly faster and ranks worse; fewer take a fifth more time.
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


def end_process(failed):
    """Without its worker every caller would wait for ever; without the process Triton tells them at once."""
    traceback.print_exception(failed.exc_value)
    os._exit(1)


def answer(sender, response):
    """Send the one response of a request."""
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def failure(message, code):
    """An error answer to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
