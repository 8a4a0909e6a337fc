"""Triton backend `rerank_openvino`: runs the cross-encoder's ONNX file on a CPU, in OpenVINO.

Triton hands over requests as they arrive. Their rows lose their padding and wait in a pool (row_pool.py), which cuts
them into micro-batches of rows of similar length (micro_batch_cuts.py), at most `micro_batch_tokens` tokens each. So no
row pays for the length of another request's row. A request is answered when its last row is scored. The pool has the
limits, priorities and deadlines that elsewhere Triton's queue has; Triton's queue stays empty.

Runs inside Triton's Python stub, which adds this folder to sys.path; needs only `numpy` and `openvino`, on a laptop and
in NVIDIA's container. Every setting is one of the `parameters` of the model's config (see
model_repository/cross_encoder/configs/cpu.pbtxt).
"""

import json
import math
import os
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils
from cpu_quota import usable_cpus
from micro_batch_cuts import LENGTH_STEP, padded_length
from row_pool import DEFAULT_LEVEL, PendingRequest, RowPool, failure, send

GAUGE_INTERVAL_S = 0.5
# OpenVINO's words for an allocation that failed.
OUT_OF_MEMORY = ("allocate", "can't alloc", "bad_alloc", "MemoryError")


class BadRequestError(ValueError):
    """The request is invalid: it gets INVALID_ARGUMENT and this message; the others of its batch get their answers."""


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Compile the graph and run it at both ends of the length range, so that READY means warm."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        settings = Settings(config)
        folder = Path(args["model_repository"]) / args["model_version"]
        # Links are resolved here: the runtimes refuse weights that a link leads out of the model's own folder.
        path = folder / (config.get("default_model_filename") or "model.onnx")
        # At fp16 `export` installs two graphs over the same weights: packed rows for GPUs, and padded rows.
        padded = path.with_suffix(".padded.onnx")
        path = (padded if padded.exists() else path).resolve()
        if not path.exists():
            raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
        core = openvino.Core()
        properties = settings.properties(core)
        self.vocab_size, self.max_length, self.token_types = limits(core.read_model(path), folder)
        self.compiled = lambda: core.compile_model(core.read_model(path), "CPU", properties).create_infer_request()
        self.infer_request = self.compiled()
        self.priority_levels = settings.priority_levels
        self.pool = RowPool(settings.micro_batch_tokens, self.max_length, settings.max_wait_s, settings.queue_timeout_s)
        for length in (LENGTH_STEP, min(self.max_length, 128), min(self.max_length, 512)):
            row = np.tile(np.array([[0, 1]], np.int32), (length, 1))
            rows = [row] * max(1, settings.micro_batch_tokens // length)
            self.logits(rows)
            self.timed_logits(rows)  # the first speed by which the pool tells how long requests wait
        self.metrics = Metrics(self.name)
        threading.excepthook = end_process
        self.worker = threading.Thread(target=self.work, name="micro-batches", daemon=True)
        self.worker.start()
        pb_utils.Logger.log_info(
            f"{self.name}: OpenVINO {openvino.__version__} on {core.get_property('CPU', 'FULL_DEVICE_NAME')}, "
            f"precision {properties['INFERENCE_PRECISION_HINT']}, {properties['INFERENCE_NUM_THREADS']} threads, "
            f"micro-batches of {settings.micro_batch_tokens} tokens"
        )

    def execute(self, requests):
        """Put each request into the pool, or refuse it; a request that is invalid or fails does not affect the others.

        Never waits, so that every request meets the limits and priorities of the pool at once.
        """
        for request in requests:
            sender = request.get_response_sender()
            try:
                pending = PendingRequest(self.rows(request), sender, request.timeout(), self.level(request))
            except Exception as error:  # noqa: BLE001 - shapes beyond 2^31 raise many types; the other requests go on
                send(sender, failure(told(error), pb_utils.TritonError.INVALID_ARG))
                continue
            waiting_s = self.pool.add(pending)
            if waiting_s is not None:
                self.metrics.refused.increment(1)
                # Triton's own words for a full queue: clients recognise them.
                message = f"Exceeds maximum queue size: {waiting_s:.1f} s of work are waiting, see max_wait_s"
                pending.fail(message, pb_utils.TritonError.UNAVAILABLE)

    def finalize(self):
        """Answer the requests that were taken, then stop."""
        self.pool.close()
        self.worker.join()

    def work(self):
        """Score micro-batch after micro-batch, until the pool is closed and empty."""
        while micro_batch := self.pool.take():
            self.score(micro_batch)
            self.metrics.show_waiting(self.pool.waiting_s)

    def level(self, request):
        """The request's place in the order of requests."""
        level = json.loads(request.parameters() or "{}").get("priority_level", DEFAULT_LEVEL)
        if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= self.priority_levels:
            raise BadRequestError(f"priority_level must be 1 to {self.priority_levels}, got {level!r}")
        return level

    def rows(self, request):
        """The rows of a request without padding, checked: OpenVINO reads beyond its tables without an error.

        Returns:
            Token ids and attention mask of each row, [length, 2] int32.
        """
        ids = int32_matrix(request, "input_ids")
        mask = int32_matrix(request, "attention_mask")
        if ids.shape != mask.shape:
            raise BadRequestError(f"input_ids has shape {list(ids.shape)} and attention_mask {list(mask.shape)}")
        lengths = (mask != 0).sum(axis=1)
        highest = 2 if self.token_types else 1
        ordered = np.array_equal(mask != 0, np.arange(mask.shape[1]) < lengths[:, None])
        if not ordered or lengths.min() < 1 or mask.min() < 0 or mask.max() > highest:
            values = "1 or 2" if self.token_types else "1"
            raise BadRequestError(f"attention_mask must be {values} for the tokens of a row, then 0 for its padding")
        if lengths.max() > self.max_length:
            raise BadRequestError(f"a row has {lengths.max()} tokens, the model takes {self.max_length}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise BadRequestError(f"input_ids must be 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}")
        # Copies: Triton reuses the request's memory once `execute` has returned.
        rows = np.stack([ids, mask], axis=2)  # [num_pairs, length, 2]
        return [row[:length].copy() for row, length in zip(rows, lengths, strict=True)]

    def score(self, micro_batch):
        """Run a micro-batch from the pool, and answer the requests that it completes.

        Requests that were cancelled are left out. Triton never marks a step of an ensemble as cancelled, but the step
        carries its caller's timeout, which the pool checks.
        """
        for request in {id(request): request for _, request, _ in micro_batch}.values():
            request.drop_if_cancelled()
        live = [item for item in micro_batch if not item[1].answered]
        if not live:
            return
        failed = None
        try:
            scored = self.timed_logits([row for row, _, _ in live])
        except (RuntimeError, MemoryError) as error:  # from OpenVINO
            failed = last_line(error)
        if failed:  # outside the handler: the error's traceback keeps the old graph in memory
            self.recover(live, failed)
            return
        for (_, request, index), logit in zip(live, scored, strict=True):
            request.put(index, logit)

    def recover(self, failed, said):
        """After a micro-batch that failed, for lack of memory: score its rows one by one, or fail the only one.

        The graph is compiled again: after an allocation that failed, OpenVINO's graph may fail for ever, compute wrong
        numbers, or end the process. If that fails, too, this thread ends, and the process with it.
        """
        if len(failed) == 1:
            ((row, request, _),) = failed
            request.fail(f"{self.name}: {reason(said, len(row))}", pb_utils.TritonError.INTERNAL)
        pb_utils.Logger.log_warn(
            f"{self.name}: {said}, on {len(failed)} rows, the longest of {len(failed[0][0])} tokens; compiling "
            "the graph again"
        )
        self.infer_request = None  # its memory is needed
        self.infer_request = self.compiled()
        if len(failed) > 1:
            for item in failed:
                self.score([item])

    def logits(self, rows):
        """Run one micro-batch of rows, as `rows` returns them: [num_rows, 1] float32."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        is_token = np.arange(padded_length(int(lengths.max()), self.max_length)) < lengths[:, None]
        ids, mask = np.zeros((2, *is_token.shape), np.int32)
        ids[is_token], mask[is_token] = np.concatenate(rows).T
        feeds = {"input_ids": ids, "attention_mask": mask}
        # A copy: the next micro-batch writes its logits to the same memory.
        return self.infer_request.infer(feeds, share_inputs=True)["logits"].copy()

    def timed_logits(self, rows):
        """As `logits`, and tell the pool the speed."""
        started = time.monotonic()
        logits = self.logits(rows)
        self.pool.ran(sum(map(len, rows)), time.monotonic() - started)
        return logits


class Metrics:
    """What Triton's own metrics cannot show: its queue of this model is always empty.

    One thread may change a metric, not two: `waiting_s` the worker, `refused` the one that runs `execute`.
    """

    def __init__(self, model):
        labels = {"model": model}
        self._families = [
            pb_utils.MetricFamily(name, description, kind)
            for name, description, kind in (
                ("rerank_waiting_seconds", "Seconds of work that wait to be scored", pb_utils.MetricFamily.GAUGE),
                ("rerank_refused_total", "Requests refused because of max_wait_s", pb_utils.MetricFamily.COUNTER),
            )
        ]
        self.waiting_s, self.refused = (family.Metric(labels=labels) for family in self._families)
        self._shown_s, self._shown_at = 0.0, -math.inf

    def show_waiting(self, seconds):
        """Set the gauge when no work waits, and else twice a second: it takes a round trip to tritonserver."""
        now = time.monotonic()
        if now > self._shown_at + GAUGE_INTERVAL_S or (self._shown_s and not seconds):
            self.waiting_s.set(seconds)
            self._shown_s, self._shown_at = seconds, now


class Settings:
    """The `parameters` of the config, as OpenVINO needs them."""

    def __init__(self, config):
        values = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.micro_batch_tokens = int(values["micro_batch_tokens"])
        self.priority_levels = int(values.get("priority_levels", 6))
        self.max_wait_s = float(values.get("max_wait_s", 5))
        self.queue_timeout_s = float(values.get("queue_timeout_s", 30))
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
        threads = self.threads or max(1, usable_cpus() // self.instances)
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            # One stream: all cores work on the same micro-batch. Two streams give the same throughput and double the
            # latency of a single document.
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # In a graph with int8 weights OpenVINO quantizes activations too, with one scale for this many values.
            # Larger groups are hardly faster and rank worse; smaller ones take a fifth more time.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128,
        }
        if self.cache:
            properties["CACHE_DIR"] = self.cache
        return properties


def limits(model, folder):
    """Vocabulary size, longest row, and whether the graph knows token types, for the checks that OpenVINO leaves out.

    The largest embedding table is that of the words; the builder's manifest holds the others. A graph of release 0.1.0,
    whose manifest lacks `token_types`, takes an attention_mask of 0 and 1 only.
    """
    tables = [
        node.input(0).get_partial_shape()[0].get_length()
        for node in model.get_ops()
        if node.get_type_name() == "Gather"
        and node.input(0).get_partial_shape().rank.get_length() == 2
        and node.input(0).get_partial_shape().is_static
    ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return max(tables), manifest["max_length"], manifest.get("token_types", False)


def told(error):
    """The message for a request that can't be read."""
    return str(error) if isinstance(error, BadRequestError) else f"the request's tensors can't be read: {error!r}"


def int32_matrix(request, name):
    """An input tensor [num_pairs, length]."""
    tensor = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if tensor.ndim != 2 or not tensor.size:
        raise BadRequestError(f"{name} must have shape [num_pairs, length], got {list(tensor.shape)}")
    return tensor


def reason(said, length):
    """Why a row of `length` tokens has no logit, and what helps if memory is short."""
    if any(words in said for words in OUT_OF_MEMORY):
        said = f"out of memory on a row of {length} tokens ({said}); pass a smaller max_length, or give the server more"
    return said


def last_line(error):
    """The end of OpenVINO's message; the lines before it name its source files."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def end_process(failed):
    """End the process when the worker fails: Triton tells callers at once, who would otherwise wait for ever."""
    traceback.print_exception(failed.exc_value)
    os._exit(1)
