"""What goes into a call and what comes out: plain values without behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Chunk",
    "Document",
    "DocumentLike",
    "LongDocuments",
    "ModelInfo",
    "RerankResponse",
    "RerankResult",
    "TextFrom",
    "Timing",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to rank, with what the caller wants to find beside it in the result."""

    text: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


DocumentLike = str | Mapping[str, Any] | Document
"""A text, a mapping with a "text" key (or the fields that `text_from` names), or a `Document`."""

TextFrom = str | Sequence[str] | Callable[[Any], str]
"""How fields become text: a template "{title}: {price:.2f}", names to join by newlines, or a function."""

LongDocuments = Literal["truncate", "chunk"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a long document that scored best."""

    text: str
    start: int
    """First character of the part in the document's text."""
    end: int
    """One past its last character."""
    index: int
    """Place among the document's parts, from 0."""
    count: int
    """Number of parts that were scored."""


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One document in its new place."""

    index: int
    """Place in the caller's list, from 0."""
    rank: int
    """Place in the result, from 1."""
    relevance_score: float
    """0 to 1: sigmoid(logit), or logit / logit_scale where the server says a `ModelInfo.logit_scale`."""
    logit: float
    """The model's raw output; results are ordered by it."""
    document: DocumentLike
    """The very object that the caller passed."""
    text: str
    """The document's text as it was scored."""
    num_tokens: int
    """Tokens of the pair after truncation; the sum over the parts of a document cut in parts."""
    truncated: bool
    """Whether tokens were cut from the query or the document."""
    chunk: Chunk | None = None
    """The best part, for a document that `long_documents="chunk"` has cut."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost."""

    num_documents: int
    num_pairs: int
    """Rows that the model scored: the documents, or their parts where they were cut."""
    num_tokens: int
    num_truncated: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a call's time went.

    Triton tells nothing of a single request's time in queue and model; its metrics have averages.
    """

    total_s: float
    server_s: float
    """Waiting for the network and the server."""
    client_s: float
    """Checking, cutting, encoding, decoding and sorting: the rest of the total."""
    num_requests: int
    num_retries: int
    """Requests that were sent again, to the same or another server."""


@dataclass(frozen=True, slots=True)
class RerankResponse:
    """Results, most relevant first. Iterating and indexing go over `results`."""

    results: tuple[RerankResult, ...]
    model: str
    usage: Usage
    timing: Timing

    def __iter__(self) -> Iterator[RerankResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, place: int) -> RerankResult:
        return self.results[place]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says of its model."""

    model: str
    checkpoint: str | None
    revision: str | None
    precision: str | None
    runtime: str | None
    """onnxruntime, tensorrt or openvino; the name of the backend if it is another."""
    max_length: int | None
    """Tokens of a pair that the checkpoint can take: the upper limit of a call's `max_length`."""
    default_max_length: int | None
    """What the server uses where a call says nothing."""
    max_batch_size: int
    """Pairs in one request."""
    max_queue_size: int | None
    """Calls that may wait to begin at the server before it refuses more; None if it sets no limit."""
    priority_levels: int | None
    """The last of its priorities, whose first is 1 (Triton has two levels for each); None if it has none."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the builder and the tokenizer say, as they say it."""
    logit_scale: float | None = None
    """In late interaction the largest possible logit: a relevance score is logit / logit_scale, the mean cosine of each
    query vector's best match. None for a cross-encoder, whose relevance score is sigmoid(logit)."""
    activation: str | None = None
    """The function of logits that the checkpoint's configuration names for sentence-transformers, such as "Sigmoid" or
    "Identity"; None if it names none. It changes no score here; `triton_rerank.compat.CrossEncoder` applies it."""
