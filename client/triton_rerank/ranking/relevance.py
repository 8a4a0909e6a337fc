"""From a logit to a relevance score, as the served ensemble defines it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from triton_rerank.errors import UnexpectedResponseError


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow at either end."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    exponential = math.exp(logit)
    return exponential / (1.0 + exponential)


@dataclass(frozen=True, slots=True)
class Relevance:
    """The function from a logit to a relevance score, 0 to 1.

    Attributes:
        logit_scale: The largest possible logit in late interaction, whose logits are mean cosines times this; None
            for a cross-encoder, whose logits are unbounded.
    """

    logit_scale: float | None = None

    @classmethod
    def of(cls, config: Any) -> Relevance:  # noqa: ANN401  # a protobuf message, which ships no types
        """The relevance of an ensemble, from its parameter `logit_scale`.

        Raises:
            UnexpectedResponseError: The parameter is not a positive number.
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
