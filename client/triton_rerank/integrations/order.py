"""The order that an adapter returns: the server's, or the one that the documents came in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.types import RerankResponse

logger: logging.Logger = logging.getLogger("triton_rerank")

OnError = Literal["raise", "keep_order"]
"""What follows when the server can't rank: the client's error, or the documents in the order that they came in."""

Order = Sequence[tuple[int, float | None]]
"""(index of a document, relevance score); the score is None where nothing was ranked."""


def ranked(response: RerankResponse) -> Order:
    """The order of a response, most relevant first."""
    return [(result.index, result.relevance_score) for result in response]


def unranked(count: int, top_n: int | None) -> Order:
    """The first `top_n` of `count` documents as they came in."""
    return [(index, None) for index in range(count)][:top_n]


def after_error(error: RerankError, on_error: OnError, count: int, top_n: int | None) -> Order:
    """The order to return after a failed call.

    Raises:
        RerankError: `error` itself, if `on_error` is "raise" or the request is invalid.
    """
    if on_error == "raise" or isinstance(error, InvalidRequestError):
        raise error
    logger.warning("reranking failed, documents keep their order: %s: %s", type(error).__name__, error)
    return unranked(count, top_n)


def check_on_error(value: str) -> OnError:
    """`value`, if it is one of `OnError`."""
    if value == "raise":
        return "raise"
    if value == "keep_order":
        return "keep_order"
    raise InvalidRequestError(f'on_error is {value!r}; pass "raise" or "keep_order"')
