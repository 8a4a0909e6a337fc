"""The order that an adapter returns: the server's, or the one that the documents came in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.types import RerankResponse

logger: logging.Logger = logging.getLogger("triton_rerank")

OnError = Literal["raise", "keep_order"]
"""What follows when the server can't rank: the client's error, or the documents in the order that they came in."""

Order = Sequence[tuple[int, float | None]]
"""(index of a document, relevance score); the score is None where nothing was ranked."""


def rerank(
    client: Callable[[], RerankClient],
    query: str,
    documents: Sequence[Any],
    on_error: OnError,
    options: Mapping[str, Any],
) -> Order:
    """The order of `documents` by the server, most relevant first.

    Args:
        client: Returns the client. It is not called for an empty query, which keeps the order.
        query: The search text.
        documents: What `RerankClient.rerank` takes.
        on_error: See `OnError`.
        options: Of `RerankClient.rerank`, `top_n` among them.

    Raises:
        RerankError: The call fails and `on_error` is "raise", or the request is invalid.
    """
    if _is_empty(query):
        return _unranked(documents, options)
    try:
        return _ranked(client().rerank(query, documents, **options))
    except RerankError as error:
        return _after(error, documents, on_error, options)


async def rerank_async(
    client: Callable[[], AsyncRerankClient],
    query: str,
    documents: Sequence[Any],
    on_error: OnError,
    options: Mapping[str, Any],
) -> Order:
    """`rerank`, awaited."""
    if _is_empty(query):
        return _unranked(documents, options)
    try:
        return _ranked(await client().rerank(query, documents, **options))
    except RerankError as error:
        return _after(error, documents, on_error, options)


def _is_empty(query: object) -> bool:
    return isinstance(query, str) and not query.strip()  # the client refuses a query that is not text


def _ranked(response: RerankResponse[Any]) -> Order:
    # Frameworks have one score for a document, so those that a cascade scored in its first stage are left out.
    return [(result.index, result.relevance_score) for result in response if result.stage == response.model]


def _unranked(documents: Sequence[Any], options: Mapping[str, Any]) -> Order:
    return [(index, None) for index in range(len(documents))][: options["top_n"]]


def _after(error: RerankError, documents: Sequence[Any], on_error: OnError, options: Mapping[str, Any]) -> Order:
    if on_error == "raise" or isinstance(error, InvalidRequestError):
        raise error
    logger.warning("reranking failed, documents keep their order: %s: %s", type(error).__name__, error)
    return _unranked(documents, options)


def check_on_error(value: str) -> OnError:
    """`value`, if it is one of `OnError`."""
    if value == "raise":
        return "raise"
    if value == "keep_order":
        return "keep_order"
    raise InvalidRequestError(f'on_error is {value!r}; pass "raise" or "keep_order"')
