"""The network for GPUs: the tokens of all rows end to end, no padding, and attention in one fused operator.

It has the parameters of `cross_encoder` and computes the same logits, from the rows of any number of requests, each
padded to a length of its own. Triton joins such requests (`allow_ragged_batch`) by laying their elements end to end.

- Only integers are ever padded. From the length of each row the graph builds [num_pairs, longest] arrays of ids and
  masks, computes positions there as the padded graph does, and gathers the tokens: the hidden states of real tokens
  alone exist.
- Attention is `com.microsoft::PackedMultiHeadAttention` (ONNX Runtime 1.16 and later, CUDA only): flash attention at
  fp16, so nothing grows with the square of the length. Query, key and value are separate and have no bias input, since
  with either of the other forms the operator makes a padded copy of them. `reference` proves the graph on a CPU.
- Hidden states are [1, num_tokens, hidden]. With two axes, ONNX Runtime fuses neither Gelu nor LayerNorm.
- Hidden states are fp16 between layers too, since what lies between matrix products is bound by memory: on an H100 a
  call of 100 documents of 180 tokens takes 0.74 of the time that sums in fp32, their casts and separate biases take.
  ONNX Runtime fuses bias, residual sum and LayerNorm into SkipLayerNormalization, which sums in fp32 since 1.27; for
  releases before, config.pbtxt asks for that (`enable_skip_layer_norm_strict_mode`).
- The last layer attends over all tokens, since the operator takes as many queries as keys; what follows is computed for
  the first token of each row alone.
- ONNX Runtime's elementwise CUDA kernels count in int32, so a batch has fewer than 2^31 elements in its widest tensor:
  see `memory.most_tokens`.
"""

from typing import cast

import torch
from torch import Tensor, nn

from triton_rerank_build.contract import ATTENTION_DOMAIN, ATTENTION_OPERATOR
from triton_rerank_build.graphs.cross_encoder import Layer, RerankGraph


class PackedGraph(nn.Module):
    """The exported network.

    Args:
        graph: The padded network. Its parameters are shared, under the same names.
    """

    def __init__(self, graph: RerankGraph) -> None:
        super().__init__()
        self.embeddings, self.layers = graph.embeddings, graph.layers
        self.dense, self.activation, self.out = graph.dense, graph.activation, graph.out

    def forward(self, input_ids: Tensor, attention_mask: Tensor, row_length: Tensor) -> Tensor:
        """Score the rows of a batch.

        Args:
            input_ids: [num_elements] int32, the rows end to end, with their padding.
            attention_mask: [num_elements] int32, as in `RerankGraph`.
            row_length: [num_pairs, 1] int32, elements of each row, padding included.

        Returns:
            [num_pairs, 1] fp32.
        """
        columns = grid_columns(row_length)
        index, inside = row_index(row_length, columns)
        ids = torch.index_select(input_ids, 0, index.flatten()).view(index.shape)
        mask = torch.index_select(attention_mask, 0, index.flatten()).view(index.shape)
        # A row has a first token, whatever its mask says: rows of padding alone, Triton's warm-up, read no neighbour.
        is_token = ((mask > 0) & inside) | (columns == 0)
        tokens, token_offset = _token_offset(is_token)
        cumulative_length = _cumulative_length(is_token)

        grids = ids, mask, self.embeddings.positions(ids).expand(index.shape)
        *layers, last = cast("list[Layer]", list(self.layers))
        hidden = self.embeddings.embed(*(_gather(grid, tokens) for grid in grids)).to(last.dtype)
        for layer in layers:
            hidden = layer.update(hidden, _attend(layer, hidden, token_offset, cumulative_length))
        attended = _attend(last, hidden, token_offset, cumulative_length)
        first_tokens = cumulative_length[:-1]
        first = last.update(*(torch.index_select(states, 1, first_tokens) for states in (hidden, attended)))
        logits: Tensor = self.out(self.activation(self.dense(first[0].float())))
        return logits


def grid_columns(row_length: Tensor) -> Tensor:
    """0 to the longest row, [1, longest] int32."""
    longest = row_length.max().item()
    _tell(longest >= 1)
    return torch.arange(longest, dtype=torch.int32)[None, :]


def _tell(fact: bool) -> None:
    """Tell torch.export about a size that depends on values."""
    torch._check(fact)  # type: ignore[no-untyped-call]


def row_index(row_length: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Where the elements of each row lie in the input, and which of the places are inside the row.

    Returns:
        [num_pairs, longest] int32, 0 beyond the end of a row, and [num_pairs, longest] bool.
    """
    inside = columns < row_length
    starts = torch.cumsum(row_length, 0, dtype=torch.int32) - row_length
    return torch.where(inside, starts + columns, 0), inside


def _token_offset(is_token: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of the tokens in [num_pairs, longest], and PackedMultiHeadAttention's `token_offset`.

    Returns:
        [num_tokens] int64, and [num_pairs, longest] int32: the positions of the tokens, then those of the padding.
    """
    flat = is_token.flatten()
    tokens, padding = torch.nonzero(flat)[:, 0], torch.nonzero(~flat)[:, 0]
    token_offset = torch.cat([tokens, padding]).to(torch.int32)
    _tell(token_offset.shape[0] == flat.shape[0])
    return tokens, token_offset.view(is_token.shape)


def _cumulative_length(is_token: Tensor) -> Tensor:
    """0, then the number of tokens up to the end of each row: [num_pairs + 1] int32."""
    counts = is_token.to(torch.int32).sum(1, dtype=torch.int32)
    # Concat, since CUDA has no Pad of int32.
    return torch.cat([torch.zeros(1, dtype=torch.int32), torch.cumsum(counts, 0, dtype=torch.int32)])


def _gather(grid: Tensor, tokens: Tensor) -> Tensor:
    """[num_pairs, longest], [num_tokens] -> [1, num_tokens]."""
    return torch.index_select(grid.flatten(), 0, tokens)[None]


def _attend(layer: Layer, hidden: Tensor, token_offset: Tensor, cumulative_length: Tensor) -> Tensor:
    """What each token attends to, among the tokens of its row: [1, num_tokens, hidden]."""
    # Reshaped, not indexed: an index is a Gather, which copies.
    query, key, value = (project(hidden).flatten(0, 1) for project in (layer.query, layer.key, layer.value))
    attended: Tensor = torch.onnx.ops.symbolic(
        f"{ATTENTION_DOMAIN}::{ATTENTION_OPERATOR}",
        (query, key, value, None, token_offset, cumulative_length),
        attrs={"num_heads": layer.num_heads},
        dtype=query.dtype,
        shape=tuple(query.shape),
        version=1,
    )
    return attended[None]
