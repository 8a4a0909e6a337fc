"""Checks of arguments. A message names the argument, the value's type and the remedy; it never quotes texts."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from numbers import Real
from typing import Any, SupportsIndex

from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.types import Cascade, LongDocuments

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Limit of one message in both directions, set in client and server."""

MAX_DOCUMENTS = 10_000
MAX_INSTRUCTION_CHARS = 4096
"""Documents in one call: more would occupy a server for minutes; narrowing down is the first stage's work."""

_MOST = 2**31 - 1
_LONGEST_TIMEOUT_S = 31_536_000  # a year: far below where clocks and Triton's microseconds overflow


def kind_of(value: object) -> str:
    """The type of a value, as messages name it."""
    return "None" if value is None else type(value).__name__


def renamed_request_size(pairs: Any) -> Any:  # noqa: ANN401  # checked as `pairs_per_request`
    """The value of `pairs_per_request` that came under its name of release 0.1.0."""
    warnings.warn("request_size is now pairs_per_request", DeprecationWarning, stacklevel=3)
    return pairs


def check_query(query: object, name: str = "query") -> str:
    """A query is a text that is not blank."""
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


def check_searches(searches: Iterable[Any]) -> list[tuple[str, Any]]:
    """(query, documents) pairs as a list."""
    checked = check_many(searches, "searches", "(query, documents) pairs", limit=None)
    for index, search in enumerate(checked):
        if isinstance(search, (str, bytes, Mapping)) or not isinstance(search, Sequence) or len(search) != 2:
            raise InvalidRequestError(f"searches[{index}] is a {kind_of(search)}; pass (query, documents)")
    return checked


def name_search(error: RerankError, index: int) -> RerankError:
    """`error` with the index of the search that failed."""
    return type(error)(f"searches[{index}]: {error}")


def check_int(value: object, name: str, *, at_least: int, remedy: str, at_most: int = sys.maxsize) -> int:
    """An int from `at_least` to `at_most`, not a bool. numpy's integers count as int."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InvalidRequestError(f"{name} is not an int (got {kind_of(value)}); {remedy}")
    try:
        number = operator.index(value)
    except TypeError:  # an array of several values has __index__, too
        raise InvalidRequestError(f"{name} is not an int (got {kind_of(value)}); {remedy}") from None
    if not at_least <= number <= at_most:
        raise InvalidRequestError(f"{name} is {number}; {remedy}")
    return int(number)


def check_optional_int(value: object, name: str, *, remedy: str) -> int | None:
    """None, or an int from 1 to 2**31 - 1."""
    return None if value is None else check_int(value, name, at_least=1, remedy=remedy, at_most=_MOST)


def check_top_n(top_n: object) -> int | None:
    """None or the number of results wanted."""
    return check_optional_int(top_n, "top_n", remedy="pass 1 or more, or None for all documents")


def check_length(value: object, name: str) -> int | None:
    """None or a number of tokens; the server checks it against the checkpoint's limit."""
    return check_optional_int(value, name, remedy="pass a number of tokens from 1 on, or None for the server's default")


def check_query_length(value: object) -> int | None:
    """None, a number of tokens, or 0: the longer of query and document is cut first."""
    remedy = "pass a number of tokens, 0 to cut the longer of query and document, or None for the server's default"
    return None if value is None else check_int(value, "query_max_length", at_least=0, remedy=remedy, at_most=_MOST)


def check_priority(value: object) -> int | None:
    """None or a priority, 1 the first; the server determines how many there are."""
    return check_optional_int(value, "priority", remedy="pass 1 (first) or more, or None for the server's default")


def check_instruction(value: object) -> str | None:
    """None or an instruction, a text that the server's tokenizer accepts."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRequestError(f"instruction is not text (got {kind_of(value)}); pass a str or None")
    if len(value) > MAX_INSTRUCTION_CHARS:
        raise InvalidRequestError(
            f"instruction has {len(value):,} characters; pass {MAX_INSTRUCTION_CHARS:,} or fewer: it takes room from "
            "every document"
        )
    encode_text(value, "instruction")
    return value


def check_timeout(timeout: object) -> float | None:
    """None or a number of seconds above 0."""
    if timeout is None:
        return None
    seconds = _number(timeout, "timeout", "pass seconds, or None")
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        raise InvalidRequestError(f"timeout is {timeout}; pass seconds above 0, up to a year, or None")
    return seconds


def check_relevance_score(value: object) -> float | None:
    """None or a relevance score, 0 to 1."""
    if value is None:
        return None
    score = _number(value, "min_relevance_score", "pass 0 to 1")
    if not 0 <= score <= 1:
        raise InvalidRequestError(f"min_relevance_score is {value}; relevance scores lie between 0 and 1")
    return score


def check_cascade(value: object) -> Cascade | None:
    """None, or a cascade with a usable number or share of documents to keep."""
    if value is None:
        return None
    cascade = value if isinstance(value, Cascade) else Cascade(value)  # type: ignore[arg-type]  # checked here
    if not isinstance(cascade.first, str) or not cascade.first:
        raise InvalidRequestError(
            f"cascade.first is not a name (got {kind_of(cascade.first)}); pass the name of an ensemble"
        )
    if not isinstance(cascade.fallback, bool):
        raise InvalidRequestError(f"cascade.fallback is {kind_of(cascade.fallback)}; pass True or False")
    return Cascade(_check_keep(cascade.keep), cascade.first, cascade.fallback)


def _check_keep(keep: object) -> int | float:
    remedy = (
        "pass a number of documents from 1 on, a share as a float above 0 and up to 1, or cascade=None; "
        "for the first stage alone, make a client of its model"
    )
    if isinstance(keep, Real) and not isinstance(keep, SupportsIndex):
        share = float(keep)
        if not 0 < share <= 1:
            raise InvalidRequestError(f"cascade keeps {keep}; {remedy}")
        return share
    try:
        return check_int(keep, "cascade", at_least=1, remedy=remedy)
    except InvalidRequestError:
        shown = keep if isinstance(keep, int) and not isinstance(keep, bool) else kind_of(keep)
        raise InvalidRequestError(f"cascade keeps {shown}; {remedy}") from None


def _number(value: object, name: str, remedy: str) -> float:
    """A real number, not a bool. numpy's numbers count."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidRequestError(f"{name} is not a number (got {kind_of(value)}); {remedy}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


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
