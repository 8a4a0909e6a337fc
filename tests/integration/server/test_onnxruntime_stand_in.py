"""The stand-in for NVIDIA's ONNX Runtime backend joins ragged inputs as it does, and refuses what it refuses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from conftest import lay_out
from support import quick_server, raw

# 12 rows are one batch; fewer wait for a minute.
CONFIG = """
name: "NAME"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 16
input [
  { name: "input_ids"       data_type: TYPE_INT32  dims: [ -1 ]  allow_ragged_batch: true },
  { name: "attention_mask"  data_type: TYPE_INT32  dims: [ -1 ]  allow_ragged_batch: true }
]
batch_input [ { kind: BATCH_ITEM_SHAPE  source_input: "input_ids"  target_name: "row_length"  data_type: TYPE_INT32 } ]
output [ { name: "logits"  data_type: TYPE_FP32  dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU  count: 1 } ]
dynamic_batching { preferred_batch_size: 12  max_queue_delay_microseconds: 60000000 }
"""


def graph(rank=1):
    """For each row, the sum of its ids at the tokens of its mask: differences of the cumulated sum at its ends."""
    elements = ["num_elements"] if rank == 1 else ["num_elements", "length"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, elements) for name in ("input_ids", "attention_mask")
    ]
    inputs.append(helper.make_tensor_value_info("row_length", TensorProto.INT32, ["num_pairs", 1]))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["num_pairs", 1])
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [], [0]),
        helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
    ]
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "flat"], ["row_major"]),
        helper.make_node("CumSum", ["row_major", "axis"], ["sums"]),
        helper.make_node("Concat", ["zero", "sums"], ["sums_before"], axis=0),
        helper.make_node("CumSum", ["row_length", "axis"], ["ends"]),
        helper.make_node("Sub", ["ends", "row_length"], ["starts"]),
        helper.make_node("Gather", ["sums_before", "ends"], ["at_ends"]),
        helper.make_node("Gather", ["sums_before", "starts"], ["at_starts"]),
        helper.make_node("Sub", ["at_ends", "at_starts"], ["logits"]),
    ]
    model = helper.make_graph(nodes, "ragged", inputs, [output], constants)
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def install(repository, name, *edits, rank=1):
    """A model with CONFIG, after `edits` (old, new), and the graph."""
    text = CONFIG.replace("NAME", name)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(text)
    onnx.save(graph(rank), repository / name / "1" / "model.onnx")
    return repository / name / "1"


def without_kernel(repository):
    """A graph with an operator that no CPU runs, and beside it the reference file of the same tensors."""
    folder = install(repository, "without_kernel")
    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").rename(folder / "model.reference.onnx")
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, folder / "model.onnx")


def unlinked_weights(repository):
    """A model.onnx that is a link to a file beside its weights, without a link to these."""
    folder = install(repository, "unlinked_weights")
    elsewhere = repository.parent / "elsewhere"
    elsewhere.mkdir()
    (folder / "model.onnx").rename(elsewhere / "model.onnx")
    (elsewhere / "model.onnx.data").write_bytes(b"weights")
    (folder / "model.onnx").symlink_to(elsewhere / "model.onnx")


# Model -> (edits of CONFIG, the rank of the graph's inputs, what Triton or the backend says).
WRONG = {
    "ragged_inputs_of_rank_2": ([], 2, r"'input_ids': dims \[-1\] in config, \[-1, -1\] in the graph"),
    "another_kind": ([("BATCH_ITEM_SHAPE", "BATCH_ITEM_SHAPE_FLATTEN")], 1, "has kind BATCH_ITEM_SHAPE_FLATTEN"),
    "a_count": ([("BATCH_ITEM_SHAPE", "BATCH_ELEMENT_COUNT")], 1, "has kind BATCH_ELEMENT_COUNT"),
    "another_type": ([('"row_length"  data_type: TYPE_INT32', '"row_length"  data_type: TYPE_FP32')], 1, "TYPE_FP32"),
    "a_type_triton_refuses": (
        [('"row_length"  data_type: TYPE_INT32', '"row_length"  data_type: TYPE_INT64')],
        1,
        "failed to poll",
    ),
    "another_name": ([('"row_length"', '"row_lengths"')], 1, "unexpected batch_input 'row_lengths'"),
    "two_names": ([('"row_length"', '["row_length", "again"]')], 1, "expects 4 inputs, model provides 3"),
    "another_source": ([('source_input: "input_ids"', 'source_input: "ids"')], 1, "failed to poll"),
    "no_batch_input": ([("batch_input [", "# ")], 1, "expects 2 inputs, model provides 3"),
    "dense_inputs": ([("  allow_ragged_batch: true", "")], 1, r"dims \[-1, -1\] in config, \[-1\] in the graph"),
    "another_output": ([('"logits"', '"scores"')], 1, "unexpected output 'scores'"),
    "another_output_type": ([("TYPE_FP32  dims: [ 1 ]", "TYPE_INT32  dims: [ 1 ]")], 1, "TYPE_INT32 in config, tensor"),
}


@pytest.fixture(scope="module")
def server(fp16_artefacts, tmp_path_factory):
    """The GPU's runtime, with models of this module that are loaded by request."""
    repository = lay_out(tmp_path_factory.mktemp("stand-in") / "repository", fp16_artefacts)
    install(repository, "ragged")
    for name, (edits, rank, _) in WRONG.items():
        install(repository, name, *edits, rank=rank)
    without_kernel(repository)
    unlinked_weights(repository)
    models = ("reranker", "ragged", "without_kernel")
    arguments = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in models))
    with quick_server(repository, runtime="onnxruntime", arguments=arguments) as running:
        yield running


def ask(server, ids, mask, model="ragged"):
    tensors = {"input_ids": np.array(ids, np.int32), "attention_mask": np.array(mask, np.int32)}
    return raw.infer(server.grpc_url, model, ["logits"], **tensors)["logits"]


def test_requests_of_any_lengths_are_joined_end_to_end_and_each_gets_its_rows(server):
    chance = np.random.default_rng(0)
    shapes = [(1, 3), (5, 16), (2, 1), (4, 40)]  # 12 rows: the batch is full with the last of them
    requests = [(chance.integers(1, 9, shape), chance.integers(0, 2, shape)) for shape in shapes]
    before = raw.statistics(server.grpc_url, "ragged")
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: ask(server, *request), requests))
    after = raw.statistics(server.grpc_url, "ragged")
    assert (after[0] - before[0], after[1] - before[1]) == (len(requests), 1)
    for (ids, mask), answer in zip(requests, answers, strict=True):
        assert answer.tolist() == (ids * mask).sum(axis=1, keepdims=True).tolist()


def test_a_request_whose_tensors_differ_in_shape_fails_alone(server):
    start, errors = threading.Barrier(2), []

    def wrong():
        start.wait()
        with pytest.raises(InferenceServerException, match="can't be read") as caught:
            ask(server, [[1, 2]] * 6, [[1]] * 6)
        errors.append(caught.value)

    thread = threading.Thread(target=wrong)
    thread.start()
    start.wait()
    assert ask(server, [[3]] * 6, [[1]] * 6).tolist() == [[3.0]] * 6
    thread.join()
    assert [error.status() for error in errors] == ["StatusCode.INVALID_ARGUMENT"]


def test_the_reference_file_beside_a_model_runs_in_its_place(server):
    assert ask(server, [[3, 4]] * 12, [[1, 0]] * 12, "without_kernel").tolist() == [[3.0]] * 12


@pytest.mark.parametrize("model", [*WRONG, "unlinked_weights"])
def test_what_the_native_backend_refuses_is_refused(server, model):
    reason = WRONG[model][2] if model in WRONG else r"model\.onnx\.data is missing: link it beside model\.onnx"
    with triton.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match=reason):
            client.load_model(model)
        assert not client.is_model_ready(model)
