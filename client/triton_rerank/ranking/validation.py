"""Checks of arguments. A refusal names the argument, what it got, and the remedy; texts are never quoted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.types import LongDocuments

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""What client and server let through in one message, either way."""

MAX_DOCUMENTS = 10_000
"""Documents in one call: more would hold a server for minutes, and to choose is a first stage's work."""


def kind_of(value: object) -> str:
    """How a message names what it got."""
    return "None" if value is None else type(value).__name__


def check_query(query: object, name: str = "query") -> str:
    """A query is a text with something in it."""
    if not isinstance(query, str):
        raise InvalidRequestError(f"{name} is not text (got {kind_of(query)}); pass a str")
    if not query.strip():
        raise InvalidRequestError(f"{name} is empty or only spaces; pass the words that were searched for")
    return query


def check_many(values: Iterable[Any], name: str, what: str, limit: int | None = MAX_DOCUMENTS) -> list[Any]:
    """`values` as a new list, if they are a collection of no more than `limit` values."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidRequestError(f"{name} is not a list of {what} (got {kind_of(values)}); pass [...]")
    taken = list(islice(values, None if limit is None else limit + 1))
    if limit is not None and len(taken) > limit:
        count = len(values) if isinstance(values, Sized) else f"more than {limit:,}"
        raise InvalidRequestError(
            f"{name} holds {count} {what}, the limit is {limit:,}; let the first stage return fewer, or split the list"
        )
    return taken


def check_int(value: object, name: str, *, at_least: int, remedy: str) -> int:
    """An int that is no bool and not below `at_least`. numpy's integers count as int."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidRequestError(f"{name} is not an int (got {kind_of(value)}); {remedy}")
    number = value.__index__()
    if number < at_least:
        raise InvalidRequestError(f"{name} is {number}; {remedy}")
    return int(number)


def check_optional_int(value: object, name: str, *, remedy: str) -> int | None:
    """None, or an int from 1 on."""
    return None if value is None else check_int(value, name, at_least=1, remedy=remedy)


def check_top_n(top_n: object) -> int | None:
    """None or the number of results wanted."""
    return check_optional_int(top_n, "top_n", remedy="pass 1 or more, or None for all documents")


def check_length(value: object, name: str) -> int | None:
    """None or a number of tokens; the server checks it against the checkpoint's limit."""
    return check_optional_int(value, name, remedy="pass a number of tokens from 1 on, or None for the server's default")


def check_priority(value: object) -> int | None:
    """None or a priority, 1 the first; how many there are, the server says."""
    return check_optional_int(value, "priority", remedy="pass 1 (first) or more, or None for the server's default")


def check_timeout(timeout: object) -> float | None:
    """None or a number of seconds above 0."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidRequestError(f"timeout is not a number (got {kind_of(timeout)}); pass seconds, or None")
    if not timeout > 0 or math.isinf(timeout):
        raise InvalidRequestError(f"timeout is {timeout}; pass seconds above 0, or None")
    return float(timeout)


def check_relevance_score(value: object) -> float | None:
    """None or a relevance score, 0 to 1."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequestError(f"min_relevance_score is not a number (got {kind_of(value)}); pass 0 to 1")
    if not 0 <= value <= 1:
        raise InvalidRequestError(f"min_relevance_score is {value}; relevance scores lie between 0 and 1")
    return float(value)


def check_long_documents(value: object) -> LongDocuments:
    """One of the two ways to treat a document beyond `max_length`."""
    if value != "truncate" and value != "chunk":  # mypy narrows to the literals by == alone
        raise InvalidRequestError(f'long_documents is {value!r}; pass "truncate" or "chunk"')
    return value


def encode_text(text: str, name: str) -> bytes:
    """`text` in UTF-8.

    Raises:
        InvalidRequestError: It holds a lone surrogate, half of a character, which UTF-8 cannot express.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InvalidRequestError(
            f"{name} has a lone surrogate {code} at character {error.start}, which UTF-8 cannot express; "
            "read the text with errors='replace'"
        ) from None
