"""A server that speaks Triton's gRPC protocol and fails on demand.

Most client tests talk to the real server. The fake produces faults that a healthy Triton does not show on demand: a
queue that is full twice and then has room, a NaN, a missing tensor, an answer that never comes. The logit of a document
that reads as a finite number is that number; of any other, the negative of its length.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from triton_rerank.ranking.batching import Limits
from triton_rerank.ranking.documents import Inputs
from triton_rerank.ranking.rerank import RerankJob, RerankOptions
from triton_rerank.transport import messages
from triton_rerank.transport.responses import read_scores

Fault = Callable[[Any, Any], Any]
"""Takes the request and the gRPC context; aborts, waits, or returns a response instead of the usual one."""


def refuse(code: grpc.StatusCode, message: str) -> Fault:
    def fault(request, context):
        context.abort(code, message)

    return fault


def hang(seconds: float) -> Fault:
    """Answer after `seconds`, or as soon as the client gives up."""

    def fault(request, context):
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait(seconds)

    return fault


def read_cells(raw: bytes) -> list[bytes]:
    cells, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        cells.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return cells


def logit_of(document: bytes) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(document)):
            return number
    return -float(len(document))


def rerank_purely(documents, **given):
    """Run a call without a network: cut it into parts, answer them as the fake server would, join the answers.

    Returns:
        The finished job, and its rounds of parts.
    """
    options = RerankOptions.check(given)
    job = RerankJob(Inputs.read("q", documents, options.text_from), options)
    fake, rounds = FakeTriton(), []
    while parts := job.next_round(Limits(rows=4, default_max_length=512)):
        rounds.append(parts)
        for part in reversed(parts):  # answers may come in any order
            request = messages.infer_request("reranker", part, job.parameters)
            job.take(part, read_scores(fake.answer(request.message), len(part.rows)))
    return job, rounds


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`with FakeTriton() as server: server.url`. Each inference takes the next of `server.faults`, in order."""

    def __init__(self, *, max_batch_size=64, max_tokens=512, workers=16, credentials=None, port=0):
        self.faults: deque[Fault] = deque()
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.timeouts: list[float] = []
        self.config_calls = 0
        self.cancelled = 0
        self.max_batch_size = max_batch_size
        self.max_tokens = max_tokens
        self.priority_levels = 6
        self.drops_padding = False
        self.about = {"checkpoint": "fake", "precision": "fp32", "max_length": 8192, "default_max_length": 512}
        self.outputs: tuple[str, ...] = ()
        self.version = "1"
        self.logit_scale: str | None = None
        self.first_stage: Callable[[bytes], float] | None = None
        """Logit of a document in late_interaction; None: there is no such model."""
        self._lock = threading.Lock()
        sizes = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(ThreadPoolExecutor(workers), options=sizes)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.url = f"127.0.0.1:{self.port}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    def stop(self, grace=0.0):
        self._server.stop(grace).wait()

    def ServerReady(self, request, context):  # noqa: N802 (the protocol's name)
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelConfig(self, request, context):  # noqa: N802
        with self._lock:
            self.config_calls += 1
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=self.max_batch_size)
        late = request.name == "late_interaction" and self.first_stage is not None
        if request.name == "reranker" or late:
            for name in ("tokenizer", "cross_encoder"):
                config.ensemble_scheduling.step.add(model_name=name)
            for name in self.outputs:
                config.output.add(name=name)
            if scale := "32" if late else self.logit_scale:
                config.parameters["logit_scale"].string_value = scale
        elif request.name == "tokenizer":
            config.dynamic_batching.SetInParent()
        elif request.name == "cross_encoder":
            config.dynamic_batching.default_queue_policy.max_queue_size = 100
            config.backend = "rerank_openvino"
            config.input.add(name="input_ids", allow_ragged_batch=self.drops_padding)
            config.dynamic_batching.priority_levels = self.priority_levels
        else:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request, context):  # noqa: N802
        names = ("reranker", "tokenizer", "cross_encoder")
        models = [service_pb2.RepositoryIndexResponse.ModelIndex(name=name, state="READY") for name in names]
        return service_pb2.RepositoryIndexResponse(models=models)

    def ModelInfer(self, request, context):  # noqa: N802
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.timeouts.append(context.time_remaining())
            fault = self.faults.popleft() if self.faults else None
        answer = fault(request, context) if fault else None
        if not context.is_active():
            with self._lock:
                self.cancelled += 1
        if answer is not None:
            return answer
        if request.model_name == "tokenizer":
            return self._describe(request)
        if request.model_version not in ("", self.version):
            text = f"Request for unknown model: '{request.model_name}' version {request.model_version} is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        return self.answer(request)

    def answer(self, request):
        """The response of a healthy server."""
        documents = read_cells(request.raw_input_contents[1])
        logit = self.first_stage if request.model_name == "late_interaction" else logit_of
        limit = request.parameters["max_length"].int64_param or self.max_tokens
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=self.version, id=request.id
        )
        tensors = [
            ("logits", "FP32", "f", [logit(d) for d in documents]),
            ("num_tokens", "INT32", "i", [min(len(d), limit) for d in documents]),
            ("truncated", "BOOL", "?", [len(d) > limit for d in documents]),
        ]
        for name, datatype, letter, values in tensors:
            response.outputs.add(name=name, datatype=datatype, shape=[len(documents), 1])
            response.raw_output_contents.append(struct.pack(f"<{len(values)}{letter}", *values))
        return response

    def _describe(self, request):
        raw = json.dumps(self.about).encode()
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="model_info", datatype="BYTES", shape=[1, 1])
        response.raw_output_contents.append(struct.pack("<I", len(raw)) + raw)
        return response
