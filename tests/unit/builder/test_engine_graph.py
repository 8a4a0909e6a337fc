"""The graph rewritten for TensorRT's parser: supported operators, equal logits."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from support import fake_trtexec
from support.tiny_models import FAMILIES, LIMIT
from triton_rerank_build.errors import BuildError
from triton_rerank_build.tensorrt.graph import prepare_graph, rewrite_for_tensorrt


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rewritten_graph_computes_the_very_same(fp16_repository, tmp_path, family):
    source = tmp_path / "copy"
    shutil.copytree(fp16_repository(family) / "cross_encoder/1", source)
    path = prepare_graph(source)
    rewritten = onnx.load(str(path), load_external_data=False)
    assert "CumSum" not in {node.op_type for node in rewritten.graph.node}
    assert not [node for node in rewritten.graph.node if node.op_type == "Shape" and node.attribute]
    onnx.checker.check_model(str(path), full_check=True)
    fake_trtexec.refuse(rewritten)
    with pytest.raises(AssertionError):
        fake_trtexec.refuse(onnx.load(str(source / "model.padded.onnx"), load_external_data=False))
    before, after = (onnxruntime.InferenceSession(str(p)) for p in (source / "model.padded.onnx", path))
    for num_pairs, length in ((1, 1), (2, 17), (5, LIMIT)):
        # Every token there is, padding and separators in the middle too.
        ids = np.random.default_rng(length).integers(0, 200, (num_pairs, length), dtype=np.int32)
        mask = (np.arange(length) < length - np.arange(num_pairs)[:, None]).astype(np.int32)
        feed = {"input_ids": ids, "attention_mask": mask}
        np.testing.assert_array_equal(after.run(None, feed)[0], before.run(None, feed)[0])


def small_graph(node, output_shape):
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.INT32, ["num_pairs", "length"])],
        [helper.make_tensor_value_info("y", *output_shape)],
        [helper.make_tensor("axis", TensorProto.INT64, [], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_the_product_counts_every_position_of_the_longest_row():
    model = small_graph(helper.make_node("CumSum", ["x", "axis"], ["y"]), (TensorProto.INT32, None))
    assert rewrite_for_tensorrt(model) == {"CumSum": 1, "Shape": 0}
    x = np.random.default_rng(0).integers(0, 2, (2, 8192), dtype=np.int32)
    x[1] = 1
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.cumsum(axis=1))


@pytest.mark.parametrize(
    ("attributes", "expected", "replaced"),
    [({}, [3, 5], 0), ({"start": 1}, [5], 1), ({"start": 0, "end": 1}, [3], 1), ({"start": -1}, [5], 1)],
)
def test_a_part_of_a_shape(attributes, expected, replaced):
    model = small_graph(helper.make_node("Shape", ["x"], ["y"], **attributes), (TensorProto.INT64, None))
    assert rewrite_for_tensorrt(model)["Shape"] == replaced
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.run(None, {"x": np.zeros((3, 5), np.int32)})[0].tolist() == expected


@pytest.mark.parametrize("attributes", [{"exclusive": 1}, {"reverse": 1}])
def test_another_kind_of_sum_is_refused(attributes):
    model = small_graph(helper.make_node("CumSum", ["x", "axis"], ["y"], **attributes), (TensorProto.INT32, None))
    with pytest.raises(BuildError, match="neither exclusive nor reverse"):
        rewrite_for_tensorrt(model)
