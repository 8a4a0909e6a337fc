"""What goes into a call and what comes out: plain values without behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

__all__ = [
    "CallOptions",
    "Cascade",
    "Chunk",
    "Document",
    "DocumentLike",
    "LongDocuments",
    "ModelInfo",
    "RerankResponse",
    "RerankResult",
    "Stage",
    "TextFrom",
    "Timing",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to rank, with an id and metadata that come back in the result."""

    text: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


DocumentLike = str | Mapping[str, Any] | Document
"""A text, a mapping with a "text" key (or the fields that `text_from` names), or a `Document`."""

DocumentT = TypeVar("DocumentT", bound=DocumentLike)
"""Type of the caller's documents."""

if TYPE_CHECKING:  # typing has no defaults of type variables before Python 3.13
    DocumentT_co = TypeVarWithDefault("DocumentT_co", bound=DocumentLike, covariant=True, default=DocumentLike)
else:
    DocumentT_co = TypeVar("DocumentT_co", bound=DocumentLike, covariant=True)

TextFrom = str | Sequence[str] | Callable[[Any], str]
"""How fields become text: a template "{title}: {price:.2f}", one or more field names, or a function."""

LongDocuments = Literal["truncate", "chunk"]
"""What happens to a document beyond `max_length`: it is truncated, or scored in parts."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """Two stages in one call: a fast model orders all documents, and the client's model scores the best of them."""

    keep: int | float = 100
    """Documents that the client's model scores: an int from 1 on, or a float above 0 and up to 1, their share of the
    call's documents, rounded up."""
    first: str = "late_interaction"
    """Name of the first stage's ensemble in Triton, on the same servers."""
    fallback: bool = False
    """Whether the client's model scores all documents if the first stage fails. The first stage then has half of the
    call's time at most."""


class CallOptions(TypedDict, total=False):
    """Options of a rerank call. `RerankClient.rerank` describes them."""

    top_n: int | None
    max_length: int | None
    query_max_length: int | None
    min_relevance_score: float | None
    long_documents: LongDocuments
    text_from: TextFrom | None
    priority: int | None
    cascade: Cascade | int | float | None
    instruction: str | None
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a long document that scored best."""

    text: str
    start: int
    """Index of the part's first character in the document's text."""
    end: int
    """One past the index of its last character."""
    index: int
    """Index among the document's parts, from 0."""
    count: int
    """Number of parts that were scored."""


@dataclass(frozen=True, slots=True)
class RerankResult(Generic[DocumentT_co]):
    """One document with its score and rank."""

    index: int
    """Index in the caller's list, from 0."""
    rank: int
    """Position in the result, from 1."""
    relevance_score: float
    """0 to 1: sigmoid(logit), or logit / logit_scale if the model has a `ModelInfo.logit_scale`."""
    logit: float
    """The model's raw output; results are ordered by it."""
    document: DocumentT_co
    """The object that the caller passed."""
    text: str
    """The document's text as it was scored."""
    num_tokens: int
    """Tokens of the pair after truncation; the sum over the parts of a document that was split."""
    truncated: bool
    """Whether tokens were cut from the query or the document."""
    chunk: Chunk | None = None
    """The best part of a document that `long_documents="chunk"` has split."""
    stage: str = ""
    """Name of the model whose logit and relevance score these are: of the first stage for the documents of a cascade
    that the client's model did not score. Scores of two stages are not comparable."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost."""

    num_documents: int
    num_pairs: int
    """Rows that the model scored: the documents, or their parts if they were split."""
    num_tokens: int
    num_truncated: int
    """Documents; those that either stage of a cascade truncated."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a call's time went.

    Triton does not report queue and compute time of a single request; its metrics have averages.
    """

    total_s: float
    server_s: float
    """Time with requests in flight: network and server."""
    client_s: float
    """Checking, splitting, encoding, decoding and sorting: the rest of the total."""
    num_requests: int
    """Inference requests; questions about the model's configuration do not count."""
    num_retries: int
    """Requests that were sent again, to the same or another server."""
    backoff_s: float = 0.0
    """Waiting before a retry with no request in flight."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One model's share of a call."""

    model: str
    usage: Usage
    timing: Timing
    model_version: str = ""
    """Version of the model that computed all scores of the stage: `ModelInfo.model_version`."""


@dataclass(frozen=True, slots=True)
class RerankResponse(Generic[DocumentT_co]):
    """Results, most relevant first. Iteration and indexing go over `results`; a slice is a response."""

    results: tuple[RerankResult[DocumentT_co], ...]
    model: str
    usage: Usage
    timing: Timing
    stages: tuple[Stage, ...] = ()
    """What each model did, in the order of the work: two entries if a cascade's first stage took part, else one."""

    @property
    def model_version(self) -> str:
        """Version of the client's model that computed the scores; "" without documents."""
        return self.stages[-1].model_version if self.stages else ""

    def __iter__(self) -> Iterator[RerankResult[DocumentT_co]]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> RerankResult[DocumentT_co]: ...

    @overload
    def __getitem__(self, index: slice) -> RerankResponse[DocumentT_co]: ...

    def __getitem__(self, index: int | slice) -> RerankResult[DocumentT_co] | RerankResponse[DocumentT_co]:
        if isinstance(index, slice):
            return replace(self, results=self.results[index])
        return self.results[index]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The server's description of its model."""

    model: str
    checkpoint: str | None
    revision: str | None
    precision: str | None
    runtime: str | None
    """onnxruntime, tensorrt, openvino, or the name of another backend."""
    max_length: int | None
    """Tokens of a pair that the checkpoint can take: the upper limit of a call's `max_length`."""
    default_max_length: int | None
    """The `max_length` of calls that pass none."""
    max_batch_size: int
    """Pairs in one request."""
    max_queue_size: int | None
    """Requests that may wait at the server before it refuses more; None if it sets no limit of their number."""
    priority_levels: int | None
    """The last priority; the first is 1. (Triton has two levels for each.) None if the model has no priorities."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Everything that the builder and the tokenizer report, unchanged."""
    logit_scale: float | None = None
    """Late interaction: the largest possible logit. A relevance score is logit / logit_scale, the mean cosine of each
    query vector's best match. None for a cross-encoder, whose relevance score is sigmoid(logit)."""
    instruction: str | None = None
    """What the model is told by calls that bring no `instruction`; None if it takes none."""
    activation: str | None = None
    """The function of logits that the checkpoint's configuration names for sentence-transformers, such as "Sigmoid" or
    "Identity"; None if it names none. It changes no score here; `triton_rerank.compat.CrossEncoder` applies it."""
    model_version: str | None = None
    """Triton's version of the ensemble. `export` makes it of everything that decides about the scores: checkpoint,
    revision, precision, limit and text layout. None if the installation is older than that, or not `export`'s."""
