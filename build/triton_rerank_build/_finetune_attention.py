"""Attention for training on a CPU: scores are made once and read once.

On a CPU, in bf16, the fused attention of PyTorch computes blocks of fp32, and the one that transformers writes
out passes over the `length x length` scores of each head two more times, to scale them and to mask them, and the mask
makes them fp32. Here the queries are scaled and the mask is one more column of queries and keys, so that the scores
come out of the product as softmax takes them. `loadtest/benchmarks/training.py` compares the three.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "triton_rerank_cpu"
_MASKED = -1e4  # exp of it is 0 in any dtype, and bf16 holds it


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """What transformers calls with `attn_implementation=NAME`.

    Args:
        module: The layer.
        query: [num_pairs, num_heads, length, head_size]; `key` and `value` alike.
        key: What the queries are compared with.
        value: What is averaged.
        attention_mask: [num_pairs, 1, length, length], 0 or a very negative number; every row alike, since in an
            encoder a token sees all others.
        scaling: Factor of the scores; 1 / sqrt(head_size) if None.
        dropout: Share of the weights that is dropped; 0 outside training.

    Returns:
        [num_pairs, length, num_heads, head_size], and the weights [num_pairs, num_heads, length, length].
    """
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        shape = (*key.shape[:3], 1)
        bias = attention_mask[:, :, 0, :, None].clamp(min=_MASKED).to(key.dtype)
        key = torch.cat([key, bias.expand(shape)], dim=-1)
        query = torch.cat([query, query.new_ones(shape)], dim=-1)
    scores = query @ key.transpose(2, 3)
    weights = torch.softmax(scores, dim=-1)
    weights = torch.nn.functional.dropout(weights, dropout) if dropout else weights
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
