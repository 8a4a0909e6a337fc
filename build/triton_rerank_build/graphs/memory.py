"""GPU memory of the largest batch that the configs allow, and the largest batch that the kernels count.

Computed from the tensors of the exported graphs at fp16, run node by node as ONNX Runtime does. On an H100 the packed
graph takes 1.00 of it at 65,536 and at 393,216 tokens (docs/benchmarks/2026-11-26-gpu.md). Not counted: half a gigabyte
of CUDA, and the allocator's reserve.
"""

import math
from dataclasses import dataclass

_FP16, _FP32 = 2, 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a cross-encoder.

    Attributes:
        num_parameters: Weights, embeddings included.
        hidden_size: Width of a token's state.
        num_heads: Attention heads of a layer.
        intermediate_size: Width inside the feed-forward half.
    """

    num_parameters: int
    hidden_size: int
    num_heads: int
    intermediate_size: int


# BAAI/bge-reranker-v2-m3; -large has the same layers and fewer positions.
V2_M3 = Shape(num_parameters=567_755_777, hidden_size=1024, num_heads=16, intermediate_size=4096)


def most_tokens(intermediate_size: int) -> int:
    """The most tokens of a batch for the packed graph on a GPU.

    ONNX Runtime's elementwise CUDA kernels count in int32, and the widest tensor has `intermediate_size` elements a
    token. Beyond that a kernel may compute garbage in silence.
    """
    return (2**31 - 1) // intermediate_size


def most_pairs(length: int, intermediate_size: int, padded_heads: int | None = None) -> int:
    """The most rows of `length` tokens in a batch on a GPU, at least 0.

    Args:
        length: Tokens of a row.
        intermediate_size: Width of a token's widest state.
        padded_heads: Attention heads of a graph that pads its rows and computes each score of two tokens; None for the
            packed graph.
    """
    widest = length * intermediate_size
    if padded_heads is not None:
        widest = max(widest, padded_heads * length**2)
    return most_tokens(widest)


def longest_pair(rows: int, intermediate_size: int, padded_heads: int | None = None) -> int:
    """Tokens of the longest pair of which a batch of `rows` fits a GPU's kernels (see `most_pairs`)."""
    longest = most_tokens(intermediate_size) // max(1, rows)
    if padded_heads is not None:
        longest = min(longest, math.isqrt(most_tokens(padded_heads) // max(1, rows)))
    return longest


def batch_bytes(shape: Shape, num_tokens: int, element_bytes: int = _FP16) -> int:
    """Activations of a batch in the packed graph.

    ONNX Runtime keeps the buffers of both halves of a layer, so they add up.

    Args:
        shape: Of the model.
        num_tokens: Of all rows, without padding.
        element_bytes: Of a number; 4 at fp32.
    """
    # State; query, key and value; what each token attends to.
    attention = num_tokens * shape.hidden_size * 5 * element_bytes
    # Gelu's input and output; the projection behind it and the new state.
    feed_forward = num_tokens * (shape.intermediate_size * 2 + shape.hidden_size * 2) * element_bytes
    return attention + feed_forward


def padded_batch_bytes(shape: Shape, num_pairs: int, length: int) -> int:
    """Activations of a batch [num_pairs, length] in the padded graph, where nothing fuses the attention."""
    # A score is the product in fp16, the same in fp32, and that plus the mask, in which the softmax works in place.
    scores = num_pairs * length * length * shape.num_heads * (_FP16 + 2 * _FP32)
    # State in fp32; query, key and value. Gelu's input, an intermediate, its output; the sum in fp32 around LayerNorm.
    layer = shape.hidden_size * (3 * _FP32 + 3 * _FP16) + shape.intermediate_size * 3 * _FP16
    return scores + num_pairs * length * layer


def weight_bytes(shape: Shape) -> int:
    """Weights at fp16."""
    return shape.num_parameters * _FP16
