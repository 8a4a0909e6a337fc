"""From Triton's answer to numbers: names, types, shapes and values, checked against the tensor contract."""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from triton_rerank.errors import UnexpectedResponseError
from triton_rerank.ranking.batching import Scores
from triton_rerank.transport.connection import Message
from triton_rerank.types import ModelInfo

# Other backends are named after their runtime.
_RUNTIMES = {"rerank_openvino": "openvino", "encode_openvino": "openvino"}
_ITEM = {"FP32": ("f", 4), "INT32": ("i", 4), "BOOL": ("b", 1)}


def read_scores(response: Message, num_pairs: int) -> Scores:
    """The three output tensors of a ModelInferResponse.

    Raises:
        UnexpectedResponseError: A tensor is missing, has another type or shape, or a logit is not finite.
    """
    logits = _column(response, "logits", "FP32", num_pairs)
    if not all(map(math.isfinite, logits)):
        row = next(row for row, logit in enumerate(logits) if not math.isfinite(logit))
        raise UnexpectedResponseError(
            f"logits[{row}] of {num_pairs} is {logits[row]}: the model computes no number for this pair; "
            "an fp16 model may overflow, try a build of higher precision"
        )
    num_tokens = _column(response, "num_tokens", "INT32", num_pairs)
    return Scores(logits, num_tokens, _column(response, "truncated", "BOOL", num_pairs))


def read_json(response: Message, name: str) -> dict[str, Any]:
    """The first row of a BYTES tensor that holds a JSON object."""
    output, raw = _find(response, name)
    length = int.from_bytes(raw[:4], "little")
    if output.datatype != "BYTES" or len(raw) < 4 + length:
        raise UnexpectedResponseError(f"{name} is {output.datatype} of {len(raw)} bytes, expected a BYTES cell")
    try:
        value = json.loads(raw[4 : 4 + length])
    except ValueError as error:
        raise UnexpectedResponseError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnexpectedResponseError(f"{name} is not a JSON object")
    return value


def _find(response: Message, name: str) -> tuple[Message, bytes]:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name == name:
            return output, raw
    names = ", ".join(output.name for output in response.outputs) or "none"
    raise UnexpectedResponseError(f"the answer has no tensor {name!r} (it has: {names}); is this a reranker's model?")


def _column(response: Message, name: str, datatype: str, num_pairs: int) -> array[Any]:
    output, raw = _find(response, name)
    if output.datatype != datatype or list(output.shape) != [num_pairs, 1]:
        raise UnexpectedResponseError(
            f"{name} is {output.datatype} {list(output.shape)}, expected {datatype} [{num_pairs}, 1]"
        )
    letter, size = _ITEM[datatype]
    if len(raw) != size * num_pairs:
        raise UnexpectedResponseError(f"{name} holds {len(raw)} bytes, expected {size * num_pairs}")
    values = array(letter, raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def model_info(
    model: str,
    said: Mapping[str, Any],
    max_batch_size: int,
    configs: Sequence[Message],
    logit_scale: float | None = None,
) -> ModelInfo:
    """What the server says, each value only where it has the type that is promised.

    Args:
        model: Name of the ensemble.
        said: The tokenizer's output `model_info`.
        max_batch_size: Of the ensemble.
        configs: Of the ensemble's steps, the tokenizer's first and that of the model that holds the weights last.
        logit_scale: See `ModelInfo`.
    """

    def text(name: str) -> str | None:
        value = said.get(name)
        return value if isinstance(value, str) else None

    def number(name: str) -> int | None:
        value = said.get(name)
        return value if isinstance(value, int) else None

    limits = (config.dynamic_batching.default_queue_policy.max_queue_size for config in reversed(configs))
    backend = configs[-1].backend
    return ModelInfo(
        model=model,
        checkpoint=text("checkpoint"),
        revision=text("revision"),
        precision=text("precision"),
        runtime=_RUNTIMES.get(backend, backend) or None,
        max_length=number("max_length"),
        default_max_length=number("default_max_length"),
        max_batch_size=max_batch_size,
        max_queue_size=next((int(limit) for limit in limits if limit), None),
        priority_levels=_priority_levels(configs[-1]) // 2 or None,
        manifest=said,
        logit_scale=logit_scale,
        activation=text("activation"),
        instruction=_instruction(said),
        model_version=None if (version := number("model_version")) is None else str(version),
    )


def _instruction(said: Mapping[str, Any]) -> str | None:
    """The default instruction, in the builder's description of the text layout."""
    layout = said.get("layout")
    told = layout.get("instruction") if isinstance(layout, Mapping) else None
    default = told.get("default") if isinstance(told, Mapping) else None
    return default if isinstance(default, str) else None


def _priority_levels(config: Message) -> int:
    """Triton's priority levels of a model, or those of its backend where the backend has the queue."""
    levels = int(config.dynamic_batching.priority_levels)
    if not levels and "priority_levels" in config.parameters:
        value = str(config.parameters["priority_levels"].string_value)
        levels = int(value) if value.isdecimal() else 0
    return levels


def drops_padding(configs: Sequence[Message]) -> bool:
    """Whether an ensemble computes no padding, so that rows of any lengths may share a request.

    Its last model drops the padding, or is called with batches of similar length by another model.

    Args:
        configs: See `model_info`; none for a model that is not an ensemble.
    """
    batched = any("encoder_model" in config.parameters for config in configs)
    return batched or (bool(configs) and any(tensor.allow_ragged_batch for tensor in configs[-1].input))
