"""Operators that the runtimes fuse when they load the exported graph, and equal results.

On a CPU, where ONNX Runtime has the same fused operators in fp32 as on a GPU in fp16.
"""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from support.tiny_models import FAMILIES

LAYERS = 2


@pytest.fixture(scope="module", params=FAMILIES)
def graph(request, tiny_exports):
    return tiny_exports(request.param, "fp32").graph


def session(graph, level, **options):
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = level
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def test_onnx_runtime_fuses_gelu_and_layer_norm_and_computes_the_same(graph, tmp_path):
    # Triton's level, "all" by default.
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    saved = tmp_path / "fused.onnx"
    fused = session(graph, level, optimized_model_filepath=str(saved))
    plain = session(graph, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)

    operators = Counter(node.op_type for node in onnx.load(saved, load_external_data=False).graph.node)
    assert operators["BiasGelu"] == LAYERS
    assert "Erf" not in operators
    # Two in each layer. In BERT's graph the LayerNorm of the embeddings has no sum before it.
    assert operators["SkipLayerNormalization"] >= 2 * LAYERS

    ids = np.random.default_rng(0).integers(5, 200, (4, 40), dtype=np.int32)
    mask = (np.arange(40) < np.array([40, 30, 7, 1])[:, None]).astype(np.int32)
    feed = {"input_ids": ids, "attention_mask": mask}
    assert fused.run(None, feed)[0] == pytest.approx(plain.run(None, feed)[0], abs=1e-5)


def test_openvino_fuses_gelu(graph):
    model = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    facts = [{key: value.value for key, value in op.get_rt_info().items()} for op in model.get_ops()]
    products = [fact["originalLayersNames"] for fact in facts if fact["layerType"] == "FullyConnected"]
    # Gelu's last operator is a product (`node_mul`); after fusion it belongs to the projection before it.
    assert sum("node_mul" in names for names in products) == LAYERS
