"""GPU memory of the largest batch that the configs allow.

Computed from the tensors of the exported graph at fp16, run node by node as ONNX Runtime does; runtimes that fuse the
attention need less. On a CPU the same graph in fp32 took 19 times the state of its tokens, of which this counts 18,
and each attention score exactly twice. Not counted: half a gigabyte of CUDA, and the allocator's reserve.
"""

from dataclasses import dataclass

# The default limit of `export --precision fp16`: 64 pairs of a large model (`V2_M3`) take 14.7 GB, which leaves room
# for CUDA and the allocator's reserve on a card of 24 GB.
GPU_MAX_LENGTH = 1024

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


def batch_bytes(shape: Shape, num_pairs: int, length: int) -> int:
    """Activations of a batch [num_pairs, length].

    ONNX Runtime keeps the buffers of both halves of a layer, so they add up.
    """
    tokens = num_pairs * length
    # A score is the product in fp16, the same in fp32, and that plus the mask, in which the softmax works in place.
    scores = tokens * length * shape.num_heads * (_FP16 + 2 * _FP32)
    # State in fp32; query, key and value.
    attention = tokens * shape.hidden_size * (_FP32 + 3 * _FP16)
    # Gelu's input, an intermediate and its output; the sum in fp32 before and after LayerNorm.
    feed_forward = tokens * (shape.intermediate_size * 3 * _FP16 + shape.hidden_size * 2 * _FP32)
    return scores + attention + feed_forward


def serving_bytes(shape: Shape, num_pairs: int, length: int) -> int:
    """Weights at fp16 and one batch."""
    return shape.num_parameters * _FP16 + batch_bytes(shape, num_pairs, length)


def most_pairs(shape: Shape, length: int, available_bytes: float) -> int:
    """The largest `max_batch_size` with which rows of `length` fit."""
    spare = available_bytes - shape.num_parameters * _FP16
    return max(0, int(spare // batch_bytes(shape, 1, length)))
