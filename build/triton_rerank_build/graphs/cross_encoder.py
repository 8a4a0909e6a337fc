"""The network that is exported: one encoder for BERT, RoBERTa and XLM-R, written for inference.

It takes over the parameters of a transformers model and computes the same logits from two inputs. What
differs from transformers' own forward, and why:

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
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation

MASKED = -10_000.0

# transformers builds its modules by assignment, so a type checker sees nothing of what they hold.
HfModule: TypeAlias = Any


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
        self.bias = _own(linear.bias, dtype) if bias else None
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
        self.bias = _own(norm.bias, dtype)
        self.eps = norm.eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> the same shape and type."""
        weight, bias = self.weight.to(hidden.dtype), self.bias.to(hidden.dtype)
        return functional.layer_norm(hidden, weight.shape, weight, bias, self.eps)


class Embeddings(nn.Module):
    """Word + position + token type, normalized.

    Args:
        embeddings: The embeddings module of a transformers model.
        config: Its configuration.
        token_types: Whether the checkpoint's tokenizer gives its tokens two types. If not, all are of type 0.
        dtype: Type of the tables.
    """

    def __init__(self, embeddings: HfModule, config: HfModule, token_types: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.word = embeddings.word_embeddings.to(dtype)
        self.position = embeddings.position_embeddings.to(dtype)
        types = embeddings.token_type_embeddings.weight
        self.types = _own(types[:2] if token_types else types[0], dtype)
        self.norm = Norm(embeddings.LayerNorm, torch.float32)
        self.token_types = token_types
        self.pad_token_id = config.pad_token_id
        self.counts_from_pad = config.model_type != "bert"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Twice [num_pairs, length] int32 -> [num_pairs, length, hidden] fp32."""
        return self.embed(input_ids, attention_mask, self.positions(input_ids))

    def embed(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """As `forward`, of tokens whose positions are known; each argument [..., length] int32."""
        embedded = self.word(input_ids) + self._token_types(attention_mask)
        normalized: Tensor = self.norm((embedded + self.position(positions)).float())
        return normalized

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

    def _token_types(self, attention_mask: Tensor) -> Tensor:
        if not self.token_types:
            return self.types
        # A comparison, not `attention_mask - 1` cut at 0: TensorRT's parser has no Clip of integers.
        return functional.embedding((attention_mask > 1).to(torch.int32), self.types)


class Layer(nn.Module):
    """One transformer layer with the normalization after each half (post-LN)."""

    def __init__(self, layer: HfModule, num_heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        attention, mixed = layer.attention.self, layer.attention.output
        mixed.dense.bias = nn.Parameter(mixed.dense(attention.value.bias))
        self.num_heads = num_heads
        self.dtype = dtype
        self.query = Projection(attention.query, dtype)
        self.key = Projection(attention.key, dtype, bias=False)
        self.value = Projection(attention.value, dtype, bias=False)
        self.attention_out = Projection(mixed.dense, dtype)
        self.attention_norm = Norm(mixed.LayerNorm, dtype)
        self.wide = Projection(layer.intermediate.dense, dtype)
        activation = layer.intermediate.intermediate_act_fn
        self.activation = gelu if isinstance(activation, GELUActivation) else activation
        self.wide_out = Projection(layer.output.dense, dtype)
        self.wide_norm = Norm(layer.output.LayerNorm, dtype)

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
        model: A transformers sequence classifier with one logit, fp32; consumed, its weights move over.
        dtype: Type of weights and matrix products, `torch.float32` or `torch.float16`.
        token_types: See `Embeddings`.
    """

    def __init__(self, model: HfModule, *, dtype: torch.dtype, token_types: bool) -> None:
        super().__init__()
        config, base = model.config, model.base_model
        self.embeddings = Embeddings(base.embeddings, config, token_types, dtype)
        self.layers = nn.ModuleList(Layer(layer, config.num_attention_heads, dtype) for layer in base.encoder.layer)
        head = model.classifier
        # BERT keeps the dense layer of its head in the pooler, the RoBERTa families in the classifier.
        dense, out = (base.pooler.dense, head) if config.model_type == "bert" else (head.dense, head.out_proj)
        self.dense = Projection(dense, torch.float32)
        self.out = Projection(out, torch.float32)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[num_pairs, length] int32, twice -> [num_pairs, 1] fp32."""
        bias = attention_bias(attention_mask)
        hidden = self.embeddings(input_ids, attention_mask)
        *layers, last = self.layers
        for layer in layers:
            hidden = layer(hidden, hidden, bias)
        first = last(hidden[:, :1], hidden, bias)[:, 0]
        logits: Tensor = self.out(torch.tanh(self.dense(first)))
        return logits
