"""The exported encoder of late interaction: one vector of length 1 for each token.

It is the encoder of `cross_encoder` with the last state of every token, projected if the checkpoint has a projection.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_rerank_build.graphs.cross_encoder import Embeddings, Layer, attention_bias
from triton_rerank_build.graphs.encoder_parts import HfModule, layers_of


class EncoderGraph(nn.Module):
    """The exported network.

    Args:
        model: A transformers encoder, fp32; unusable afterwards, since its weights are moved.
        projection: [dim, hidden], fp32; None if the states are the vectors.
        dtype: Type of weights and matrix products, `torch.float32` or `torch.float16`.
    """

    def __init__(self, model: HfModule, projection: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.embeddings = Embeddings(model, False, dtype)
        self.layers = nn.ModuleList(Layer(parts, config.num_attention_heads, dtype) for parts in layers_of(model))
        # fp32 at every precision, as the normalization: both are small, and come last.
        self.projection = None if projection is None else nn.Parameter(projection.t().contiguous(), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[num_rows, length] int32, twice -> [num_rows, length * dim] fp32, the vectors of a row one after another.

        Flat, since otherwise Triton's configuration would have to name `dim` of the checkpoint.
        """
        bias = attention_bias(attention_mask)
        hidden = self.embeddings(input_ids, attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, hidden, bias)
        vectors = hidden if self.projection is None else torch.matmul(hidden, self.projection)
        return functional.normalize(vectors, dim=-1).flatten(1)
