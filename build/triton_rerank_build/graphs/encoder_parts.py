"""Where transformers keeps the parts of an encoder, family by family, under the names of one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# transformers builds its modules by assignment, so a type checker sees nothing of what they hold.
HfModule: TypeAlias = Any
Activation: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerParts:
    """The parts of a layer with the normalization after each half."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_out: nn.Linear
    attention_norm: nn.LayerNorm
    wide: nn.Linear
    activation: Activation
    wide_out: nn.Linear
    wide_norm: nn.LayerNorm


@dataclass(frozen=True)
class HeadParts:
    """The parts of the classifier, which reads the state of the first token."""

    dense: nn.Linear
    activation: Activation
    out: nn.Linear


def layers_of(base: HfModule) -> Iterator[LayerParts]:
    """The layers of a base model, the first one first."""
    if base.config.model_type == "distilbert":
        return map(_distilbert_layer, base.transformer.layer)
    return map(_bert_layer, base.encoder.layer)


def _bert_layer(layer: HfModule) -> LayerParts:
    attention, mixed = layer.attention.self, layer.attention.output
    return LayerParts(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        attention_out=mixed.dense,
        attention_norm=mixed.LayerNorm,
        wide=layer.intermediate.dense,
        activation=layer.intermediate.intermediate_act_fn,
        wide_out=layer.output.dense,
        wide_norm=layer.output.LayerNorm,
    )


def _distilbert_layer(layer: HfModule) -> LayerParts:
    attention, forward = layer.attention, layer.ffn
    return LayerParts(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        attention_out=attention.out_lin,
        attention_norm=layer.sa_layer_norm,
        wide=forward.lin1,
        activation=forward.activation,
        wide_out=forward.lin2,
        wide_norm=layer.output_layer_norm,
    )


def head_of(model: HfModule) -> HeadParts:
    """The classifier of a sequence classifier."""
    family, head = model.config.model_type, model.classifier
    if family == "bert":  # in the pooler
        return HeadParts(model.base_model.pooler.dense, torch.tanh, head)
    if family == "distilbert":
        return HeadParts(model.pre_classifier, torch.relu, head)
    if family == "electra":
        return HeadParts(head.dense, head.activation, head.out_proj)
    return HeadParts(head.dense, torch.tanh, head.out_proj)


def reduce_labels(out: nn.Linear, relevant: int | None) -> None:
    """Turn the last layer of two labels into one logit, in place: that of the relevant label less that of the other.

    The softmax of two logits is the sigmoid of their difference.

    Args:
        out: Of one or two labels.
        relevant: Index of the label that stands for relevance; None if there is one label.
    """
    if relevant is None:
        return
    with torch.no_grad():
        out.weight = nn.Parameter(out.weight[relevant : relevant + 1] - out.weight[1 - relevant : 2 - relevant])
        out.bias = nn.Parameter(out.bias[relevant : relevant + 1] - out.bias[1 - relevant : 2 - relevant])
