"""The packed graph in fp16 throughout: residual sums and LayerNorm too, biases folded into the fused operators.

A candidate, not a product: CUDA's SkipLayerNormalization may sum in fp16, which only a GPU shows.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.contract import MODEL_FILE, OUTPUT_NAME, PACKED_INPUT_NAMES, REFERENCE_FILE, WEIGHTS_FILE
from triton_rerank_build.graphs.cross_encoder import Embeddings, Layer, RerankGraph
from triton_rerank_build.graphs.onnx import _trace, load_model
from triton_rerank_build.graphs.packed import PackedGraph
from triton_rerank_build.graphs.reference import write_reference


class HalfLayer(Layer):
    def update(self, rows, attended):
        rows = _skip(torch.matmul(attended, self.attention_out.weight), rows, self.attention_norm, self.attention_out)
        widened = torch.matmul(rows, self.wide.weight)
        widened = _operator("BiasGelu", (widened, self.wide.bias), widened)
        return _skip(torch.matmul(widened, self.wide_out.weight), rows, self.wide_norm, self.wide_out)


class HalfEmbeddings(Embeddings):
    def embed(self, input_ids, attention_mask, positions):
        return super().embed(input_ids, attention_mask, positions).half()


class Widened(nn.Module):
    def __init__(self, projection):
        super().__init__()
        self.projection = projection

    def forward(self, hidden):
        return self.projection(hidden.float())


def _skip(hidden, skip, norm, projection):
    """LayerNorm of a projection, its bias and the state before it."""
    inputs = (hidden, skip, norm.weight, norm.bias, projection.bias)
    return _operator("SkipLayerNormalization", inputs, skip, epsilon=norm.eps)


def _operator(name, inputs, like, **attributes):
    return torch.onnx.ops.symbolic(
        f"com.microsoft::{name}", inputs, attrs=attributes, dtype=like.dtype, shape=tuple(like.shape), version=1
    )


def write_all_fp16(settings):
    """Write the graph and its reference into `settings["folder"]`: a job of `probe`."""
    import onnx_ir

    folder = Path(settings["folder"])
    folder.mkdir()
    model = load_model(resolve_checkpoint(settings["checkpoint"]))
    graph = PackedGraph(RerankGraph(model, dtype=torch.float16, token_types=False)).eval()
    graph.embeddings.__class__, graph.dense = HalfEmbeddings, Widened(graph.dense)
    for layer in graph.layers:
        layer.__class__ = HalfLayer
        for norm in (layer.attention_norm, layer.wide_norm):
            norm.half()
    row_length = torch.tensor([[5], [3], [8]], dtype=torch.int32)
    ids = torch.ones(16, dtype=torch.int32)
    elements, num_pairs = {0: torch.export.Dim("num_elements")}, {0: torch.export.Dim("num_pairs")}
    shapes = (elements, elements, num_pairs)
    traced = _trace(graph, (ids, ids.clone(), row_length), PACKED_INPUT_NAMES, OUTPUT_NAME, shapes)
    onnx_ir.save(traced, folder / MODEL_FILE, external_data=WEIGHTS_FILE)
    write_reference(folder / MODEL_FILE, folder / REFERENCE_FILE)
    return {}


def differences(found, expected):
    """Largest difference of the logits from the reference, by batch."""
    return {
        f"{name}: worst difference": float(np.abs(np.array(found[name]) - want).max())
        for name, want in expected.items()
    }
