"""From Triton's answer to numbers: names, types, shapes and values, checked against the tensor contract."""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._errors import UnexpectedResponseError
from ._untyped import Message

_ITEM = {"FP32": ("f", 4), "INT32": ("i", 4), "BOOL": ("b", 1)}


@dataclass(frozen=True, slots=True)
class Scores:
    """One part's answer, its rows in the part's order."""

    logits: Sequence[float]
    num_tokens: Sequence[int]
    truncated: Sequence[int]


def read_scores(response: Message, num_pairs: int) -> Scores:
    """The three output tensors of a ModelInferResponse.

    Raises:
        UnexpectedResponseError: A tensor is missing, has another type or shape, or a logit is no finite
            number.
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
        raise UnexpectedResponseError(f"{name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnexpectedResponseError(f"{name} is no JSON object")
    return value


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow at either end."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    exponential = math.exp(logit)
    return exponential / (1.0 + exponential)


@dataclass(frozen=True, slots=True)
class Relevance:
    """What makes a relevance score, 0 to 1, of a logit.

    Attributes:
        logit_scale: The logit of a document that fits in every way, where logits are means of cosines times this; None
            for a cross-encoder, whose logits have no bound and are those of a logistic regression.
    """

    logit_scale: float | None = None

    @classmethod
    def of(cls, config: Message) -> Relevance:
        """What the ensemble's configuration says: its parameter `logit_scale`.

        Raises:
            UnexpectedResponseError: It is no positive number.
        """
        if config is None or "logit_scale" not in config.parameters:
            return cls()
        said = config.parameters["logit_scale"].string_value
        try:
            scale = float(said)
        except ValueError:
            scale = math.nan
        if not 0 < scale < math.inf:
            raise UnexpectedResponseError(f"parameter logit_scale of model {config.name!r} is {said!r}, not above 0")
        return cls(scale)

    def __call__(self, logit: float) -> float:
        """sigmoid(logit), or logit / logit_scale; a cosine below 0 counts as 0."""
        if self.logit_scale is None:
            return sigmoid(logit)
        return min(1.0, max(0.0, logit / self.logit_scale))


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
