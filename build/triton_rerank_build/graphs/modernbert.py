"""The exported network of ModernBERT: rotary positions, layers that attend to all tokens or to near ones, gated halves.

It takes over the parameters of a transformers model. What differs from transformers' own forward, and why:

- Padding and distance are masked by adding `MASKED` to a score (see `cross_encoder`).
- The last layer computes the first token's row alone, unless the classifier reads the mean of all tokens.
- Angles of the rotary positions are tables (see `decoder`).
- At fp16 the residual sums, LayerNorm, rotation, softmax and the head stay in fp32.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from triton_rerank_build.graphs.cross_encoder import MASKED, Norm, Projection, attention_bias, gelu
from triton_rerank_build.graphs.decoder import Angles, AnglesOf, Words, rotate
from triton_rerank_build.graphs.encoder_parts import Activation, HfModule

GLOBAL = "full_attention"


class ModernLayer(nn.Module):
    """One layer with the normalization before each half (pre-LN)."""

    def __init__(self, layer: HfModule, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_size, self.dtype = layer.attn.head_dim, dtype
        self.reach = layer.attention_type
        # The first layer has none: the embeddings are normalized.
        self.attention_norm = None if isinstance(layer.attn_norm, nn.Identity) else Norm(layer.attn_norm, torch.float32)
        self.mixed = Projection(layer.attn.Wqkv, dtype)
        self.attention_out = Projection(layer.attn.Wo, dtype)
        self.gated_norm = Norm(layer.mlp_norm, torch.float32)
        self.wide = Projection(layer.mlp.Wi, dtype)
        self.activation = same_gelu(layer.mlp.act)
        self.down = Projection(layer.mlp.Wo, dtype)

    def forward(self, hidden: Tensor, angles: AnglesOf, bias: Tensor, num_rows: int | None) -> Tensor:
        """Update the first `num_rows` tokens, or all of them.

        Args:
            hidden: [num_pairs, length, hidden] fp32.
            angles: Of all positions.
            bias: Broadcast to [num_pairs, num_heads, length, length] fp32, 0 or `MASKED`.
            num_rows: None for all.

        Returns:
            [num_pairs, num_rows, hidden] fp32.
        """
        states = hidden if self.attention_norm is None else self.attention_norm(hidden)
        query, key, value = self.mixed(states.to(self.dtype)).chunk(3, dim=-1)
        query, row_angles = query[:, :num_rows], (angles[0][:, :num_rows], angles[1][:, :num_rows])
        query, key = self._turned(query, row_angles), self._turned(key, angles)
        scores = torch.matmul(query * self.head_size**-0.5, key.transpose(-1, -2)).float() + bias[:, :, :num_rows]
        weights = torch.softmax(scores, dim=-1).to(self.dtype)
        attended = torch.matmul(weights, self._heads(value).transpose(1, 2)).transpose(1, 2).flatten(2)
        rows = hidden[:, :num_rows] + self.attention_out(attended).float()
        widened, gate = self.wide(self.gated_norm(rows).to(self.dtype)).chunk(2, dim=-1)
        updated: Tensor = rows + self.down(self.activation(widened) * gate).float()
        return updated

    def _heads(self, hidden: Tensor) -> Tensor:
        return hidden.reshape(*hidden.shape[:2], -1, self.head_size)

    def _turned(self, hidden: Tensor, angles: AnglesOf) -> Tensor:
        return rotate(self._heads(hidden).float(), angles).to(self.dtype).transpose(1, 2)


class ModernGraph(nn.Module):
    """The exported network.

    Args:
        base: The base model of transformers, fp32; consumed, its weights move over.
        head: What follows on the state of the first token, or on the mean of all: linear layers, norms, activations.
        mean: Whether the head reads the mean.
        max_length: Longest row.
        dtype: Type of weights and matrix products.
    """

    def __init__(
        self, base: HfModule, head: Sequence[nn.Module], *, mean: bool, max_length: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.embeddings = Words(base.embeddings.tok_embeddings, dtype)
        self.embeddings_norm = Norm(base.embeddings.norm, torch.float32)
        places = torch.arange(max_length)[None]
        kinds = set(base.config.layer_types)
        self.angles = nn.ModuleDict({kind: Angles(*base.rotary_emb(torch.zeros(1), places, kind)) for kind in kinds})
        self.layers = nn.ModuleList(ModernLayer(layer, dtype) for layer in base.layers)
        self.norm = Norm(base.final_norm, torch.float32)
        self.head = nn.Sequential(*map(_fp32, head))
        self.window, self.mean = base.config.sliding_window, mean

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[num_pairs, length] int32, twice -> [num_pairs, 1] fp32."""
        length = input_ids.shape[1]
        hidden = self.embeddings_norm(self.embeddings.word(input_ids).float())
        everywhere = attention_bias(attention_mask)
        column = torch.arange(length, dtype=torch.int32)
        far = (column[None, :] - column[:, None]).abs() > self.window
        nearby = everywhere + far.float()[None, None] * MASKED
        *layers, last = cast("list[ModernLayer]", list(self.layers))
        angles = {kind: table(length) for kind, table in self.angles.items()}
        for layer in layers:
            hidden = layer(hidden, angles[layer.reach], everywhere if layer.reach == GLOBAL else nearby, None)
        bias = everywhere.expand(-1, -1, length, -1) if last.reach == GLOBAL else nearby
        states = self.norm(last(hidden, angles[last.reach], bias, None if self.mean else 1))
        if self.mean:
            real = (attention_mask > 0).float()[:, :, None]
            pooled = (states * real).sum(1) / real.sum(1).clamp(min=1.0)
        else:
            pooled = states[:, 0]
        logits: Tensor = self.head(pooled)
        return logits


def same_gelu(activation: Activation) -> Activation:
    """The activation, in the order of steps that runtimes fuse if it is the exact Gelu."""
    return gelu if isinstance(activation, (GELUActivation, nn.GELU)) else activation


class _Applied(nn.Module):
    """An activation as a module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(hidden)


def _fp32(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return Projection(module, torch.float32)
    return Norm(module, torch.float32) if isinstance(module, nn.LayerNorm) else _Applied(same_gelu(module))
