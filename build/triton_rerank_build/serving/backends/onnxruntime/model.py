"""Triton backend `onnxruntime`: stands in for NVIDIA's ONNX Runtime backend, which the tritonserver from PyPI lacks.

The GPU's config.pbtxt and its artefact run unchanged on a laptop, so tests cover them. The backend joins requests on
the batch axis, runs the graph once, and splits the outputs. It refuses at load what the native backend refuses: ragged
inputs, and tensors whose names, types or dims are not the graph's. As in the native backend, a batch whose run fails
fails all of its requests and the instance goes on; a request whose tensors can't be read fails alone.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

# One file for all backends, in the folder of `rerank_openvino` beside this one.
sys.path.append(str(Path(__file__).resolve().parents[1] / "rerank_openvino"))
from cpu_quota import usable_cpus

CONFIG_TYPES = {"TYPE_INT32": "tensor(int32)", "TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the artefact with the config's thread counts, and compare the config with the graph."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        # Links are resolved here: the runtimes refuse weights that a link leads out of the model's own folder.
        path = (folder / (config.get("default_model_filename") or "model.onnx")).resolve()
        if not path.exists():
            raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
        self.session = onnxruntime.InferenceSession(
            str(path), session_options(config), providers=["CPUExecutionProvider"]
        )
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        check(config, "input", self.session.get_inputs())
        check(config, "output", self.session.get_outputs())

    def execute(self, requests):
        """Join the requests, run the graph once, split the outputs."""
        responses, feeds = [None] * len(requests), {}
        for index, request in enumerate(requests):
            try:
                feeds[index] = self.feed(request)
            except Exception as error:  # noqa: BLE001 - shapes beyond 2^31 raise many types; the other requests go on
                failure = pb_utils.TritonError(f"the tensors can't be read: {error}", pb_utils.TritonError.INVALID_ARG)
                responses[index] = pb_utils.InferenceResponse(error=failure)
        for index, response in zip(feeds, self.run(list(feeds.values())), strict=True):
            responses[index] = response
        return responses

    def feed(self, request):
        """The input tensors of a request by name, all of one shape."""
        feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        shapes = {name: list(tensor.shape) for name, tensor in feed.items()}
        if len({tensor.shape for tensor in feed.values()}) > 1 or not all(tensor.size for tensor in feed.values()):
            raise ValueError(f"shapes {shapes}")
        return feed

    def run(self, feeds):
        """The response to each request of a batch."""
        if not feeds:
            return []
        try:
            joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
            outputs = self.session.run(self.outputs, joined)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many types; each fails these requests alone
            failure = pb_utils.TritonError(f"onnx runtime error: {error}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in feeds]
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, part) for name, part in zip(self.outputs, row, strict=True)]
            )
            for row in parts
        ]


def session_options(config):
    """Thread counts from the parameters that the native backend reads; by default the instances share the cores."""
    values = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    instances = sum(group.get("count", 1) for group in config["instance_group"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(values.get("intra_op_thread_count", 0)) or max(1, usable_cpus() // instances)
    options.inter_op_num_threads = int(values.get("inter_op_thread_count", 0))
    return options


def check(config, kind, graph):
    """Raise unless the config's inputs or outputs (`kind`) are dense and have the graph's names, types and dims."""
    name = config["name"]
    graph = {item.name: item for item in graph}
    for item in config[kind]:
        tensor = item["name"]
        if item.get("allow_ragged_batch"):
            raise pb_utils.TritonModelException(
                f"model '{name}': {tensor} allows ragged batches, which ONNX Runtime takes only for 1-D inputs"
            )
        if tensor not in graph:
            raise pb_utils.TritonModelException(
                f"model '{name}', unexpected {kind} '{tensor}', the graph has {sorted(graph)}"
            )
        found = graph[tensor]
        if CONFIG_TYPES.get(item["data_type"]) != found.type:
            raise pb_utils.TritonModelException(
                f"model '{name}', {kind} '{tensor}': {item['data_type']} in config, {found.type} in the graph"
            )
        dims = [-1, *map(int, item["dims"])]
        shape = [size if isinstance(size, int) else -1 for size in found.shape]
        if dims != shape:
            raise pb_utils.TritonModelException(
                f"model '{name}', {kind} '{tensor}': dims {dims} in config, {shape} in the graph"
            )
    missing = graph.keys() - {item["name"] for item in config[kind]}
    if kind == "input" and missing:
        raise pb_utils.TritonModelException(f"model '{name}': the config lacks the inputs {sorted(missing)}")
