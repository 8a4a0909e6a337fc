"""Operators that the runtimes fuse when they load the exported graph, and equal results.

On a CPU, where ONNX Runtime has the same fused operators in fp32 as on a GPU in fp16.
"""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from support.tiny_models import FAMILIES
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.contract import MODEL_FILE, PADDED_FILE, REFERENCE_FILE, WEIGHTS_FILE
from triton_rerank_build.graphs.cross_encoder import RerankGraph
from triton_rerank_build.graphs.onnx import write_packed
from triton_rerank_build.graphs.packed import PackedGraph
from triton_rerank_build.graphs.reference import write_reference
from triton_rerank_build.graphs.weights import load_model

LAYERS = 2
# Triton's level, "all" by default.
ALL, NONE = (getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{name}_ALL") for name in ("ENABLE", "DISABLE"))


@pytest.fixture(scope="module", params=FAMILIES)
def graph(request, tiny_exports):
    return tiny_exports(request.param, "fp32").graph


def session(graph, level, **options):
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = level
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def fused_and_plain(graph, folder):
    """Sessions with all fusions and with none, and the number of each operator after all of them."""
    saved = folder / "fused.onnx"
    fused = session(graph, ALL, optimized_model_filepath=str(saved))
    operators = Counter(node.op_type for node in onnx.load(saved, load_external_data=False).graph.node)
    return fused, session(graph, NONE), operators


def test_onnx_runtime_fuses_gelu_and_layer_norm_and_computes_the_same(graph, tmp_path):
    fused, plain, operators = fused_and_plain(graph, tmp_path)
    assert operators["BiasGelu"] == LAYERS
    assert "Erf" not in operators
    # Two in each layer. In BERT's graph the LayerNorm of the embeddings has no sum before it.
    assert operators["SkipLayerNormalization"] >= 2 * LAYERS

    ids = np.random.default_rng(0).integers(5, 200, (4, 40), dtype=np.int32)
    mask = (np.arange(40) < np.array([40, 30, 7, 1])[:, None]).astype(np.int32)
    feed = {"input_ids": ids, "attention_mask": mask}
    assert fused.run(None, feed)[0] == pytest.approx(plain.run(None, feed)[0], abs=1e-5)


@pytest.mark.slow
def test_it_does_so_in_the_graph_of_packed_rows(tiny_exports, tmp_path):
    # In fp32: a CPU's fused operators take no fp16.
    made = tiny_exports("bert", "fp32")
    for name, copy in ((MODEL_FILE, PADDED_FILE), (WEIGHTS_FILE, WEIGHTS_FILE)):
        (tmp_path / copy).write_bytes((made.repository / "cross_encoder/1" / name).read_bytes())
    model = load_model(resolve_checkpoint(str(made.checkpoint)))
    graph = PackedGraph(RerankGraph(model, dtype=torch.float32, token_types=True))
    write_packed(graph, tmp_path / MODEL_FILE, weights_of=tmp_path / PADDED_FILE)
    write_reference(tmp_path / MODEL_FILE, tmp_path / REFERENCE_FILE)

    fused, plain, operators = fused_and_plain(tmp_path / REFERENCE_FILE, tmp_path)
    assert operators["BiasGelu"] == LAYERS
    assert "Erf" not in operators
    assert operators["SkipLayerNormalization"] >= 2 * LAYERS

    lengths = np.array([[40], [30], [7], [1]], np.int32)
    ids = np.random.default_rng(0).integers(5, 200, lengths.sum(), dtype=np.int32)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "row_length": lengths}
    assert fused.run(None, feed)[0] == pytest.approx(plain.run(None, feed)[0], abs=1e-5)


def test_openvino_fuses_gelu(graph):
    model = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    facts = [{key: value.value for key, value in op.get_rt_info().items()} for op in model.get_ops()]
    products = [fact["originalLayersNames"] for fact in facts if fact["layerType"] == "FullyConnected"]
    # Gelu's last operator is a product (`node_mul`); after fusion it belongs to the projection before it.
    assert sum("node_mul" in names for names in products) == LAYERS
