"""Triton backend `onnxruntime`: stands in for NVIDIA's ONNX Runtime backend, which the tritonserver from PyPI lacks.

The GPU's config.pbtxt and its artefact run unchanged on a laptop, so tests cover them. The backend joins requests, runs
the graph once, and splits the outputs. As in the native backend,

- inputs of equal shape are joined on the batch axis; inputs with `allow_ragged_batch` are joined end to end, whatever
  their lengths, and `batch_input` tells the graph the length of each row;
- a config whose tensors don't match the graph's is refused at load, and so are weights that don't lie beside the model;
- a batch whose run fails fails all of its requests and the instance goes on.

A request whose tensors can't be read fails alone. Where `export` has installed NAME.reference.onnx beside NAME.onnx,
that file runs: the same graph over the same weights, with a body for the operators that have no CPU kernel.
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

# In the config -> in the graph.
TYPES = {"TYPE_INT32": "tensor(int32)", "TYPE_INT64": "tensor(int64)", "TYPE_FP32": "tensor(float)"}


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the artefact with the config's thread counts, and compare the config with the graph."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        path = artefact(folder / (config.get("default_model_filename") or "model.onnx"))
        self.session = onnxruntime.InferenceSession(
            str(path), session_options(config), providers=["CPUExecutionProvider"]
        )
        self.inputs = [item["name"] for item in config["input"]]
        self.ragged = {item["name"] for item in config["input"] if item.get("allow_ragged_batch")}
        # Name in the graph -> the input whose row lengths it holds.
        self.row_lengths = {item["target_name"][0]: item["source_input"][0] for item in config.get("batch_input", [])}
        self.outputs = [item["name"] for item in config["output"]]
        check(config, self.session.get_inputs(), self.session.get_outputs())

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

    def join(self, feeds):
        """The graph's inputs by name, of all requests."""
        joined = {
            name: np.concatenate([feed[name].ravel() if name in self.ragged else feed[name] for feed in feeds])
            for name in self.inputs
        }
        for target, source in self.row_lengths.items():
            shapes = [feed[source].shape for feed in feeds]
            joined[target] = np.concatenate([np.full((rows, 1), length, np.int32) for rows, length in shapes])
        return joined

    def run(self, feeds):
        """The response to each request of a batch."""
        if not feeds:
            return []
        try:
            outputs = self.session.run(self.outputs, self.join(feeds))
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


def artefact(path):
    """The file to load. Links are resolved: the newest ONNX Runtime refuses weights outside the model's own folder."""
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
    target = path.resolve()
    weights = path.with_name(f"{path.name}.data")
    # The native backend looks for weights where the repository has the model, not where a link leads.
    if target.with_name(f"{target.name}.data").exists() and not weights.exists():
        raise pb_utils.TritonModelException(f"{weights} is missing: link it beside {path.name}, or copy both")
    reference = path.with_suffix(".reference.onnx")
    return reference.resolve() if reference.exists() else target


def session_options(config):
    """Thread counts from the parameters that the native backend reads; by default the instances share the cores."""
    values = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
    instances = sum(group.get("count", 1) for group in config["instance_group"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(values.get("intra_op_thread_count", 0)) or max(1, usable_cpus() // instances)
    options.inter_op_num_threads = int(values.get("inter_op_thread_count", 0))
    return options


def check(config, inputs, outputs):
    """Raise unless the config's tensors have the graph's names, types and dims."""
    name = config["name"]
    batch_inputs = config.get("batch_input", [])
    named = {item["name"] for item in config["input"]} | {
        target for item in batch_inputs for target in item["target_name"]
    }
    if len(named) != len(inputs):
        refuse(name, f"configuration expects {len(named)} inputs, model provides {len(inputs)}")
    inputs, outputs = ({tensor.name: tensor for tensor in tensors} for tensors in (inputs, outputs))
    for item in config["input"]:
        dims = [-1] if item.get("allow_ragged_batch") else [-1, *map(int, item["dims"])]
        check_tensor(name, "input", item["name"], item["data_type"], dims, inputs)
    for item in config["output"]:
        check_tensor(name, "output", item["name"], item["data_type"], [-1, *map(int, item["dims"])], outputs)
    for item in batch_inputs:
        check_batch_input(name, item, inputs)


def check_batch_input(model, item, graph):
    """Raise unless a `batch_input` is one that the stand-in computes, and the graph takes it."""
    if item["kind"] != "BATCH_ITEM_SHAPE" or item["data_type"] != "TYPE_INT32" or len(item["target_name"]) != 1:
        refuse(
            model,
            f"batch_input has kind {item['kind']}, {item['data_type']} and {len(item['target_name'])} target names; "
            "this stand-in of the backend computes BATCH_ITEM_SHAPE, TYPE_INT32, for one name",
        )
    check_tensor(model, "batch_input", item["target_name"][0], item["data_type"], [-1, 1], graph)


def check_tensor(model, kind, tensor, data_type, dims, graph):
    """Raise unless `graph` has a tensor of this name, type and dims, where -1 stands for any number."""
    if tensor not in graph:
        refuse(model, f"unexpected {kind} '{tensor}', the graph has {sorted(graph)}")
    found = graph[tensor]
    if TYPES.get(data_type) != found.type:
        refuse(model, f"{kind} '{tensor}': {data_type} in config, {found.type} in the graph")
    shape = [size if isinstance(size, int) else -1 for size in found.shape]
    if dims != shape:
        refuse(model, f"{kind} '{tensor}': dims {dims} in config, {shape} in the graph")


def refuse(model, reason):
    """Raise the error that fails the load."""
    raise pb_utils.TritonModelException(f"unable to load model '{model}', {reason}")
