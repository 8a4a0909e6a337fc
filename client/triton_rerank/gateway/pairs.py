"""The pairs of a `/score` request, under the names that vLLM has given its two sides over time."""

from __future__ import annotations

from dataclasses import dataclass

from triton_rerank.gateway.bodies import ScoreBody, Text
from triton_rerank.gateway.documents import texts_of
from triton_rerank.gateway.errors import invalid

_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


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
    queries, documents = (_texts(side, key, limit) for side, key in ((left, first), (right, second)))
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


def _texts(side: str | list[Text], key: str, limit: int) -> list[str]:
    return texts_of([side] if isinstance(side, str) else side, key, None, limit)
