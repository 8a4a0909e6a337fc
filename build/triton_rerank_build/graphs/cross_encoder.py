"""The exported network: one encoder for all families of `checkpoints.families.ENCODERS`, written for inference.

It takes over the parameters of a transformers model (`encoder_parts`) and computes the same logits from two inputs.
What differs from transformers' own forward, and why:

- Positions are derived from `input_ids` and token types from `attention_mask` (0 = padding, 1 = token of type 0,
  2 = token of type 1), so every family has the same signature.
- Padding is masked by adding -10,000 to a score: exp(-10,000) is exactly 0 in fp32, while the lowest float is
  -inf in fp16 and turns a row that is all padding into NaN.
- The last layer computes the first token's row alone, since the classifier reads nothing else: exact, and 3
  to 8 % less work.
- Two biases of each layer are gone, exactly. A key's bias adds the same to all scores of a query, and softmax ignores
  that. A value's bias is added whole to what a token attends to, since the weights sum to 1: the next bias takes it up.
- At fp16 the padded graph keeps residual sums, LayerNorm, softmax and the classifier in fp32; only matrix products and
  what lies between two of them are fp16. What `packed` does differs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation

from triton_rerank_build.checkpoints.families import ENCODERS
from triton_rerank_build.graphs.encoder_parts import HfModule, LayerParts, head_of, layers_of

MASKED = -10_000.0


def _own(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A copy with its own memory: a parameter that is only a view keeps the whole checkpoint file mapped."""
    return nn.Parameter(tensor.detach().to(dtype, copy=True).contiguous(), requires_grad=False)


def attention_bias(attention_mask: Tensor) -> Tensor:
    """[num_rows, length] int32 -> [num_rows, 1, 1, length] fp32: 0 for a token, `MASKED` for padding."""
    return (1.0 - (attention_mask > 0)[:, None, None, :].float()) * MASKED


def gelu(hidden: Tensor) -> Tensor:
    """The exact Gelu, in an order of its steps that ONNX Runtime fuses into one when it loads the graph.

    It knows this and one more. Torch exports a third, `x * (0.5 * (1 + erf))`: five passes over the widest tensor there
    is. Halving is exact, and comes first, where it cannot overflow fp16.
    """
    return (hidden * 0.5) * (1.0 + torch.erf(hidden / math.sqrt(2.0)))


class Projection(nn.Module):
    """A linear layer that keeps its weight as [in, out].

    The graph then holds MatMul + Add, the form that quantizers and attention fusions look for, and no
    Transpose of a large constant for every runtime to fold at load time.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = _own(linear.weight.t(), dtype)
        self.bias = _own(linear.bias, dtype) if bias and linear.bias is not None else None
        # The original is consumed, so that only one copy of the weights is ever held.
        del linear.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        product = torch.matmul(hidden, self.weight)
        return product if self.bias is None else product + self.bias


class Norm(nn.Module):
    """LayerNorm, in the type of what it normalizes; its mean and deviation are always computed in fp32."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _own(norm.weight, dtype)
        self.bias = None if norm.bias is None else _own(norm.bias, dtype)
        self.eps = norm.eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> the same shape and type."""
        weight = self.weight.to(hidden.dtype)
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return functional.layer_norm(hidden, weight.shape, weight, bias, self.eps)


class Embeddings(nn.Module):
    """Word + position + token type, normalized; projected where the tables are narrower than the layers (ELECTRA).

    Args:
        model: The base model of transformers.
        token_types: Whether the checkpoint's tokenizer gives its tokens two types. If not, all are of type 0.
        dtype: Type of the tables.
    """

    def __init__(self, model: HfModule, token_types: bool, dtype: torch.dtype) -> None:
        super().__init__()
        embeddings, config = model.embeddings, model.config
        self.word = embeddings.word_embeddings.to(dtype)
        self.position = embeddings.position_embeddings.to(dtype)
        self.types = None
        if hasattr(embeddings, "token_type_embeddings"):  # DistilBERT has none
            types = embeddings.token_type_embeddings.weight
            self.types = _own(types[:2] if token_types else types[0], dtype)
        self.norm = Norm(embeddings.LayerNorm, torch.float32)
        narrow = getattr(model, "embeddings_project", None)
        self.project = None if narrow is None else Projection(narrow, dtype)
        self.dtype = dtype
        self.token_types = token_types
        self.pad_token_id = config.pad_token_id
        self.counts_from_pad = ENCODERS[config.model_type].counts_from_pad

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Twice [num_pairs, length] int32 -> [num_pairs, length, hidden] fp32."""
        return self.embed(input_ids, attention_mask, self.positions(input_ids))

    def embed(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """As `forward`, of tokens whose positions are known; each argument [..., length] int32."""
        embedded = self.word(input_ids)
        if self.types is not None:
            embedded = embedded + self._token_types(attention_mask, self.types)
        normalized: Tensor = self.norm((embedded + self.position(positions)).float())
        return normalized if self.project is None else self.project(normalized.to(self.dtype)).float()

    def positions(self, input_ids: Tensor) -> Tensor:
        """[num_pairs, length] int32 -> the same shape, or [1, length] where each row counts alike."""
        if not self.counts_from_pad:
            return torch.arange(input_ids.shape[1], dtype=torch.int32)[None, :]  # [1, length]
        # From the ids, not from the mask, as transformers does: it matters for "<pad>" inside a document.
        # Counted in integers: a runtime that lowers floats to bf16 (OpenVINO) or fp16 would miscount beyond 256 or
        # 2,048, and give a token the position of its neighbour.
        real = input_ids.ne(self.pad_token_id).to(torch.int32)
        positions: Tensor = torch.cumsum(real, dim=1, dtype=torch.int32) * real + self.pad_token_id
        return positions  # [num_pairs, length]

    def _token_types(self, attention_mask: Tensor, types: Tensor) -> Tensor:
        if not self.token_types:
            return types
        # A comparison, not `attention_mask - 1` cut at 0: TensorRT's parser has no Clip of integers.
        return functional.embedding((attention_mask > 1).to(torch.int32), types)


class Layer(nn.Module):
    """One transformer layer with the normalization after each half (post-LN)."""

    def __init__(self, parts: LayerParts, num_heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        parts.attention_out.bias = nn.Parameter(parts.attention_out(parts.value.bias))
        self.num_heads = num_heads
        self.dtype = dtype
        self.query = Projection(parts.query, dtype)
        self.key = Projection(parts.key, dtype, bias=False)
        self.value = Projection(parts.value, dtype, bias=False)
        self.attention_out = Projection(parts.attention_out, dtype)
        self.attention_norm = Norm(parts.attention_norm, dtype)
        self.wide = Projection(parts.wide, dtype)
        self.activation = gelu if isinstance(parts.activation, GELUActivation) else parts.activation
        self.wide_out = Projection(parts.wide_out, dtype)
        self.wide_norm = Norm(parts.wide_norm, dtype)

    def forward(self, rows: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """Update `rows` by what they attend to in `context`.

        Args:
            rows: [num_pairs, num_rows, hidden] fp32, the tokens whose state is wanted.
            context: [num_pairs, length, hidden] fp32, all tokens.
            bias: [num_pairs, 1, 1, length] fp32, 0 or `MASKED`.

        Returns:
            [num_pairs, num_rows, hidden] fp32.
        """
        return self.update(rows, self._attend(rows.to(self.dtype), context.to(self.dtype), bias))

    def update(self, rows: Tensor, attended: Tensor) -> Tensor:
        """The layer after its attention.

        Args:
            rows: [..., hidden], the state before the layer, in the type that residual sums are computed in.
            attended: [..., hidden], what each row attends to, before the projection that mixes the heads.

        Returns:
            [..., hidden], in the type of `rows`.
        """
        rows = self.attention_norm(self.attention_out(attended).to(rows.dtype) + rows)
        widened = self.activation(self.wide(rows.to(self.dtype)))
        updated: Tensor = self.wide_norm(self.wide_out(widened).to(rows.dtype) + rows)
        return updated

    def _attend(self, rows: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        query, key = self._heads(self.query(rows)), self._heads(self.key(context))
        value = self._heads(self.value(context))
        # Spelled out, not scaled_dot_product_attention: OpenVINO fuses both, equally fast at 16 x 128 and 8 x 512 in
        # fp32 and bf16, while torch exports the latter with shape arithmetic that grows the graph by a third.
        # Scaled before the product: at fp16 the product itself must stay in range.
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)).float() + bias
        weights = torch.softmax(scores, dim=-1).to(self.dtype)
        return torch.matmul(weights, value).transpose(1, 2).flatten(2)

    def _heads(self, hidden: Tensor) -> Tensor:
        split = hidden.view(hidden.shape[0], hidden.shape[1], self.num_heads, -1)
        return split.transpose(1, 2)  # [num_pairs, num_heads, length, head_size]


class RerankGraph(nn.Module):
    """The exported network.

    Args:
        model: A transformers sequence classifier with one logit (`reduce_labels`), fp32; its weights move over.
        dtype: Type of weights and matrix products, `torch.float32` or `torch.float16`.
        token_types: See `Embeddings`.
    """

    def __init__(self, model: HfModule, *, dtype: torch.dtype, token_types: bool) -> None:
        super().__init__()
        base, heads = model.base_model, model.config.num_attention_heads
        self.embeddings = Embeddings(base, token_types, dtype)
        self.layers = nn.ModuleList(Layer(parts, heads, dtype) for parts in layers_of(base))
        head = head_of(model)
        self.dense = Projection(head.dense, torch.float32)
        self.activation = head.activation
        self.out = Projection(head.out, torch.float32)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[num_pairs, length] int32, twice -> [num_pairs, 1] fp32."""
        bias = attention_bias(attention_mask)
        hidden = self.embeddings(input_ids, attention_mask)
        *layers, last = self.layers
        for layer in layers:
            hidden = layer(hidden, hidden, bias)
        first = last(hidden[:, :1], hidden, bias)[:, 0]
        return self.score(first)

    def score(self, first: Tensor) -> Tensor:
        """The states of the first tokens, [num_pairs, hidden] fp32 -> [num_pairs, 1] fp32."""
        logits: Tensor = self.out(self.activation(self.dense(first)))
        return logits
