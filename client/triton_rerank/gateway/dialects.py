"""The formats of rerank calls. The keys of a body choose the format; the first path segment tells two more apart.

`texts` is text-embeddings-inference, `passages` is NVIDIA NIM, `top_k` (even null) is Voyage, and every other body gets
one answer that callers of Cohere, Jina, vLLM and most others accept. LiteLLM sends the same request to infinity and to
vLLM but reads different answers: the prefix `/infinity` chooses documents as strings, `/voyage` Voyage's answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from triton_rerank.gateway.answers import (
    ApiVersion,
    BilledUnits,
    CohereAnswer,
    Meta_,
    NimAnswer,
    NimResult,
    Result,
    TeiResult,
    Tokens,
    Usage,
    VoyageAnswer,
    VoyageUsage,
)
from triton_rerank.gateway.bodies import Body, Text
from triton_rerank.gateway.documents import query_of, texts_of
from triton_rerank.gateway.errors import invalid
from triton_rerank.types import RerankResponse, RerankResult

Ranked = RerankResponse[str]
_DOCUMENTS_PER_SEARCH_UNIT = 100  # Cohere's


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer says beside the results."""

    request_id: str
    model: str
    created: int


@dataclass(frozen=True, slots=True)
class Search:
    """A rerank request, whatever its dialect."""

    dialect: str
    model: str | None
    query: str
    documents: Sequence[Text]
    """As the caller sent them."""
    texts: list[str]
    top_n: int | None
    priority: int | None
    instruction: str | None
    raw_scores: bool
    return_documents: bool
    must_fit: bool
    """Whether a truncated document is an error."""
    max_tokens: int | None
    in_parts: bool

    def score(self, result: RerankResult[str]) -> float:
        """The score that the caller asked for."""
        return result.logit if self.raw_scores else result.relevance_score

    def text(self, index: int) -> str:
        """A document's text to answer with: its own if it has one, not the `rank_fields`."""
        document = self.documents[index]
        own = document if isinstance(document, str) else document.get("text")
        return own if isinstance(own, str) else self.texts[index]


def read_search(body: Body, dialect: str, limit: int) -> Search:
    """The request that a body describes.

    Args:
        body: The decoded body.
        dialect: Its format.
        limit: The largest number of documents.

    Raises:
        GatewayError: A value is missing or unusable.
    """
    key = {"tei": "texts", "nim": "passages"}.get(dialect, "documents")
    documents: list[Text] | None = getattr(body, key)
    if documents is None:
        raise invalid(
            "documents are missing: send documents (Cohere, Jina, vLLM, Voyage), texts (text-embeddings-inference) or "
            "passages (NVIDIA NIM)",
            "documents",
        )
    return Search(
        dialect=dialect,
        model=body.model,
        query=query_of(body.query),
        documents=documents,
        texts=texts_of(documents, key, body.rank_fields, limit),
        top_n=_top_n(body),
        priority=body.priority,
        instruction=body.instruction,
        raw_scores=bool(body.raw_scores),
        return_documents=bool(body.return_text if dialect == "tei" else body.return_documents),
        must_fit=_must_fit(body),
        max_tokens=_at_least_1(body.max_tokens_per_doc, "max_tokens_per_doc"),
        in_parts=(body.max_chunks_per_doc or 0) > 1,
    )


def dialect_of(body: Body, prefix: str) -> str:
    """The name of a body's format.

    Args:
        body: The decoded body.
        prefix: First segment of the path.
    """
    if body.texts is not None:
        return "tei"
    if body.passages is not None:
        return "nim"
    if body.top_k is not UNSET or prefix == "voyage":
        return "voyage"
    return "infinity" if prefix == "infinity" else "cohere"


def _top_n(body: Body) -> int | None:
    for name in ("top_n", "top_k"):
        value = getattr(body, name)
        if value is not None and value is not UNSET and value != 0:
            # More than there are documents stands for all; so do numbers beyond the client's range.
            return min(_at_least_1(value, name) or 1, 2**31 - 1)
    return None


def _must_fit(body: Body) -> bool:
    if isinstance(body.truncate, str):
        return body.truncate.upper() in ("NONE", "FALSE")
    return body.truncate is False or body.truncation is False


def _at_least_1(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise invalid(f"{name} is {value}; send 1 or more, or leave it out", name)
    return value


def answer(search: Search, response: Ranked, about: Answered) -> Any:  # noqa: ANN401  # one structure of `answers`, or a list
    """The answer in the search's format."""
    return _ANSWERS[search.dialect](search, response, about)


def _cohere(search: Search, response: Ranked, about: Answered) -> CohereAnswer:
    units = math.ceil(len(search.documents) / _DOCUMENTS_PER_SEARCH_UNIT)
    tokens = response.usage.num_tokens
    return CohereAnswer(
        id=about.request_id,
        created=about.created,
        model=about.model,
        results=[Result(r.index, search.score(r), _document(search, r.index)) for r in response.results],
        usage=Usage(tokens, tokens),
        meta=Meta_(ApiVersion(), BilledUnits(units), Tokens(tokens)),
    )


def _document(search: Search, index: int) -> Any:  # noqa: ANN401  # the caller's own object
    """An object, or absent; a string for infinity's callers. LiteLLM and LocalAI's callers fail on null."""
    if not search.return_documents:
        return UNSET
    if search.dialect == "infinity":
        return search.text(index)
    document = search.documents[index]
    return {"text": document} if isinstance(document, str) else document


def _tei(search: Search, response: Ranked, about: Answered) -> list[TeiResult]:
    return [
        TeiResult(r.index, search.score(r), search.text(r.index) if search.return_documents else UNSET)
        for r in response.results
    ]


def _voyage(search: Search, response: Ranked, about: Answered) -> VoyageAnswer:
    # voyageai.Client raises an error for an answer that holds "" anywhere.
    data = [
        Result(r.index, search.score(r), (search.text(r.index) or UNSET) if search.return_documents else UNSET)
        for r in response.results
    ]
    return VoyageAnswer(data, about.model, VoyageUsage(response.usage.num_tokens))


def _nim(search: Search, response: Ranked, about: Answered) -> NimAnswer:
    rankings = [NimResult(r.index, r.logit) for r in response.results]
    return NimAnswer(rankings, Usage(response.usage.num_tokens, response.usage.num_tokens))


_ANSWERS: dict[str, Callable[[Search, Ranked, Answered], Any]] = {
    "cohere": _cohere,
    "infinity": _cohere,
    "tei": _tei,
    "voyage": _voyage,
    "nim": _nim,
}
