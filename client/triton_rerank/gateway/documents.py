"""The texts of a request: its query and documents, or its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from triton_rerank.gateway.bodies import ScoreBody, Text
from triton_rerank.gateway.errors import invalid

_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Of `/score`, under the names that vLLM has given them over time."""


def query_of(query: Text | None) -> str:
    """The query, which is a string or {"text": "..."}.

    Raises:
        GatewayError: There is none, or it is blank.
    """
    if query is None:
        raise invalid("query is missing", "query")
    text = query if isinstance(query, str) else query.get("text")
    if not isinstance(text, str):
        raise invalid('query has no "text"; send a string or {"text": "..."}', "query")
    if not text.strip():
        raise invalid("query is empty", "query", empty=True)
    return text


def texts_of(documents: Sequence[Text], key: str, fields: Sequence[str] | None, limit: int) -> list[str]:
    """The texts of documents, in their order.

    Args:
        documents: Strings or objects.
        key: Their key in the request, for messages.
        fields: Names of the fields that make an object's text; "text" if None.
        limit: The largest number of documents.

    Raises:
        GatewayError: There are none or too many, or one has no text.
    """
    if not documents:
        raise invalid(f"{key} is empty", key, empty=True)
    if len(documents) > limit:
        raise invalid(
            f"{key} holds {len(documents):,} documents, the limit is {limit:,}; send fewer, or split the list", key
        )
    return [
        document if isinstance(document, str) else _text_of(document, f"{key}[{index}]", fields)
        for index, document in enumerate(documents)
    ]


def _text_of(document: dict[str, Any], name: str, fields: Sequence[str] | None) -> str:
    if fields:
        if not any(field in document for field in fields):
            raise invalid(f"{name} has none of the rank_fields", name)
        values = (document.get(field) for field in fields)
        return "\n".join(text for text in map(_as_text, values) if text)
    if "text" not in document:
        return _as_text(document)
    text = document["text"]
    if not isinstance(text, str):
        raise invalid(f"{name}.text is not a string", f"{name}.text")
    return text


def _as_text(value: object) -> str:
    """A field's text: strings as they are, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@dataclass(frozen=True, slots=True)
class Pairs:
    """One query and its documents, or as many queries as documents."""

    queries: list[str]
    documents: list[str]


def read_pairs(body: ScoreBody, limit: int) -> Pairs:
    """The pairs that a body describes.

    Args:
        body: The decoded body.
        limit: The largest number of pairs.

    Raises:
        GatewayError: A side is missing or unusable, or their numbers differ.
    """
    for first, second in _SIDES:
        left, right = getattr(body, first), getattr(body, second)
        if left is not None and right is not None:
            break
    else:
        raise invalid("the pairs are missing: send text_1 and text_2, or queries and documents", "text_1")
    queries, documents = (
        texts_of([side] if isinstance(side, str) else side, key, None, limit)
        for side, key in ((left, first), (right, second))
    )
    if len(queries) not in (1, len(documents)):
        raise invalid(
            f"{first} holds {len(queries)} texts and {second} {len(documents)}; send 1 against many, or equally many",
            first,
        )
    for index, query in enumerate(queries):
        if not query.strip():
            name = first if isinstance(left, str) else f"{first}[{index}]"
            raise invalid(f"{name} is empty", name, empty=True)
    return Pairs(queries, documents)
