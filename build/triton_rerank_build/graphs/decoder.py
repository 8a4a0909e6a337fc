"""The exported network of decoder rerankers (Qwen3): one logit at the last token of each row.

It takes over the parameters of a transformers model. What differs from transformers' own forward, and why:

- Rows are padded on the right. With causal attention no token sees what follows it, so padding needs no mask.
- The last layer computes the last token's row alone, since the score is read there.
- Of the head over the vocabulary, one vector is left: the row of the answer "yes" less that of "no". The sigmoid of the
  logit is then the softmax over the two answers, which is the authors' score.
- Angles of the rotary positions are a table. In the graph, a runtime that lowers floats to bf16 (OpenVINO) would give
  positions beyond 256 the angle of their neighbour.
- At fp16 the residual sums, RMSNorm, softmax and the score stay in fp32.
"""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from triton_rerank_build.graphs.cross_encoder import MASKED, Projection, attention_bias
from triton_rerank_build.graphs.encoder_parts import HfModule

AnglesOf: TypeAlias = tuple[Tensor, Tensor]
"""Cosine and sine of some positions, each [1 or num_pairs, num_rows, 1, head_size]."""


class RmsNorm(nn.Module):
    """RMSNorm, always computed in fp32."""

    def __init__(self, norm: HfModule) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().float().clone(), requires_grad=False)
        self.eps = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., size] -> the same shape, fp32."""
        hidden = hidden.float()
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Words(nn.Module):
    """The table of word vectors."""

    def __init__(self, table: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.word = table.to(dtype)


class Angles(nn.Module):
    """Cosine and sine of the rotary positions, each [1, max_length, head_size]."""

    def __init__(self, cosine: Tensor, sine: Tensor) -> None:
        super().__init__()
        # [1, max_length, 1, head_size]: the shape in which they are used, else the exporter writes them twice.
        self.cosine = nn.Parameter(cosine[:, :, None].clone(), requires_grad=False)
        self.sine = nn.Parameter(sine[:, :, None].clone(), requires_grad=False)

    def forward(self, length: int) -> AnglesOf:
        """Twice [1, length, 1, head_size]."""
        return self.cosine[:, :length], self.sine[:, :length]


def rotate(hidden: Tensor, angles: AnglesOf) -> Tensor:
    """Turn each head by the angles of its position: [num_pairs, num_rows, num_heads, head_size] fp32."""
    cosine, sine = angles
    half = hidden.shape[-1] // 2
    turned = torch.cat((-hidden[..., half:], hidden[..., :half]), dim=-1)
    return hidden * cosine + turned * sine


class DecoderLayer(nn.Module):
    """One layer: normalization before each half (pre-LN), grouped heads of keys and values, a gated second half."""

    def __init__(self, layer: HfModule, config: HfModule, dtype: torch.dtype) -> None:
        super().__init__()
        attention, gated = layer.self_attn, layer.mlp
        self.head_size, self.dtype = attention.head_dim, dtype
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.query = Projection(attention.q_proj, dtype)
        self.key = Projection(attention.k_proj, dtype)
        self.value = Projection(attention.v_proj, dtype)
        self.query_norm, self.key_norm = RmsNorm(attention.q_norm), RmsNorm(attention.k_norm)
        self.attention_out = Projection(attention.o_proj, dtype)
        self.gated_norm = RmsNorm(layer.post_attention_layernorm)
        self.gate, self.up = Projection(gated.gate_proj, dtype), Projection(gated.up_proj, dtype)
        self.down = Projection(gated.down_proj, dtype)
        self.activation = gated.act_fn

    def forward(
        self,
        rows: Tensor,
        context: Tensor,
        row_angles: AnglesOf,
        angles: AnglesOf,
        bias: Tensor,
    ) -> Tensor:
        """Update `rows` by what they attend to in `context`.

        Args:
            rows: [num_pairs, num_rows, hidden] fp32, the tokens whose state is wanted.
            context: [num_pairs, length, hidden] fp32, all tokens.
            row_angles: Of the rows' positions.
            angles: Of all positions.
            bias: Broadcast to [num_pairs, num_heads, num_rows, length] fp32, 0 or `MASKED`.

        Returns:
            [num_pairs, num_rows, hidden] fp32.
        """
        queries, keys = (self.attention_norm(states).to(self.dtype) for states in (rows, context))
        query = rotate(self.query_norm(self._heads(self.query(queries))), row_angles).to(self.dtype).transpose(1, 2)
        key = self._grouped(rotate(self.key_norm(self._heads(self.key(keys))), angles).to(self.dtype))
        value = self._grouped(self._heads(self.value(keys)))
        scores = torch.matmul(query * self.head_size**-0.5, key.transpose(-1, -2)).float() + bias
        attended = torch.matmul(torch.softmax(scores, dim=-1).to(self.dtype), value).transpose(1, 2).flatten(2)
        rows = rows + self.attention_out(attended).float()
        states = self.gated_norm(rows).to(self.dtype)
        updated: Tensor = rows + self.down(self.activation(self.gate(states)) * self.up(states)).float()
        return updated

    def _heads(self, hidden: Tensor) -> Tensor:
        return hidden.view(*hidden.shape[:2], -1, self.head_size)  # [num_pairs, num_rows, num_heads, head_size]

    def _grouped(self, heads: Tensor) -> Tensor:
        """[num_pairs, length, num_kv_heads, head_size] -> [num_pairs, num_heads, length, head_size]."""
        heads = heads.transpose(1, 2)
        if self.group == 1:
            return heads
        wide = heads[:, :, None].expand(-1, -1, self.group, -1, -1)
        return wide.flatten(1, 2)


class DecoderGraph(nn.Module):
    """The exported network.

    Args:
        model: The base model of transformers, fp32; consumed, its weights move over.
        score: [hidden], what the last state is multiplied with.
        max_length: Longest row.
        dtype: Type of weights and matrix products.
    """

    def __init__(self, model: HfModule, score: Tensor, *, max_length: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.embeddings = Words(model.embed_tokens, dtype)
        self.angles = Angles(*model.rotary_emb(torch.zeros(1), torch.arange(max_length)[None]))
        self.layers = nn.ModuleList(DecoderLayer(layer, model.config, dtype) for layer in model.layers)
        self.norm = RmsNorm(model.norm)
        self.score = nn.Parameter(score.detach().float().clone()[:, None], requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[num_pairs, length] int32, twice -> [num_pairs, 1] fp32."""
        length = input_ids.shape[1]
        hidden = self.embeddings.word(input_ids).float()
        angles = self.angles(length)
        column = torch.arange(length, dtype=torch.int32)
        bias = (column[None, :] > column[:, None]).float()[None, None] * MASKED
        *layers, last_layer = self.layers
        for layer in layers:
            hidden = layer(hidden, hidden, angles, angles, bias)
        # A row of padding alone, Triton's warm-up, reads its first token.
        last = ((attention_mask > 0).sum(1, dtype=torch.int64) - 1).clamp(min=0)  # [num_pairs]
        rows = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))
        row_angles = tuple(table[0, :, 0].index_select(0, last)[:, None, None] for table in angles)
        state = last_layer(rows, hidden, row_angles, angles, attention_bias(attention_mask))[:, 0]
        return torch.matmul(self.norm(state), self.score)
