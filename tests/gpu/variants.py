"""Variants of the packed graph, to be measured beside it: candidates, not products."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.contract import MODEL_FILE, OUTPUT_NAME, PACKED_INPUT_NAMES, REFERENCE_FILE, WEIGHTS_FILE
from triton_rerank_build.graphs.cross_encoder import Embeddings, Layer, Projection, RerankGraph
from triton_rerank_build.graphs.onnx import _trace, load_model
from triton_rerank_build.graphs.packed import PackedGraph
from triton_rerank_build.graphs.reference import write_reference


class FoldedLayer(Layer):
    """Without the two biases that change nothing, and with those before a sum in fp32, where they are fused into it.

    A key's bias adds the same to all scores of a query, which softmax ignores. A value's bias is added to each mean of
    values whole, since their weights sum to 1, so it belongs to the bias after attention.
    """

    def fold(self):
        bias, weight = self.value.bias.float(), self.attention_out.weight.float()
        self.attention_out.bias = _constant(self.attention_out.bias.float() + bias @ weight)
        self.wide_out.bias = _constant(self.wide_out.bias.float())
        for projection in (self.key, self.value):
            projection.__class__, projection.bias = WithoutBias, None

    def update(self, rows, attended):
        attended = torch.matmul(attended, self.attention_out.weight).float()
        rows = self.attention_norm(attended + self.attention_out.bias + rows)
        widened = self.activation(self.wide(rows.to(self.dtype)))
        widened = torch.matmul(widened, self.wide_out.weight).float()
        return self.wide_norm(widened + self.wide_out.bias + rows)


class WithoutBias(Projection):
    def forward(self, hidden):
        return torch.matmul(hidden, self.weight)


class HalfLayer(FoldedLayer):
    """The same in fp16 throughout: residual sums and LayerNorm too, in ONNX Runtime's fused operators."""

    def fold(self):
        super().fold()
        for projection in (self.attention_out, self.wide_out):
            projection.bias = _constant(projection.bias.half())
        for norm in (self.attention_norm, self.wide_norm):
            norm.half()

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


def _constant(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def _skip(hidden, skip, norm, projection):
    """LayerNorm of a projection, its bias and the state before it."""
    inputs = (hidden, skip, norm.weight, norm.bias, projection.bias)
    return _operator("SkipLayerNormalization", inputs, skip, epsilon=norm.eps)


def _operator(name, inputs, like, **attributes):
    return torch.onnx.ops.symbolic(
        f"com.microsoft::{name}", inputs, attrs=attributes, dtype=like.dtype, shape=tuple(like.shape), version=1
    )


VARIANTS = {"folded": FoldedLayer, "fp16": HalfLayer}


def write_variant(settings):
    """Write the variant of this name and its reference into `settings["folder"]`: a job of `probe`."""
    import onnx_ir

    folder = Path(settings["folder"])
    folder.mkdir()
    model = load_model(resolve_checkpoint(settings["checkpoint"]))
    graph = PackedGraph(RerankGraph(model, dtype=torch.float16, token_types=False)).eval()
    variant = VARIANTS[settings["name"]]
    if variant is HalfLayer:
        graph.embeddings.__class__, graph.dense = HalfEmbeddings, Widened(graph.dense)
    for layer in graph.layers:
        layer.__class__ = variant
        layer.fold()
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
