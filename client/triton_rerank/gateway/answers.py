"""Bodies of answers, one structure for each dialect. Fields that are UNSET are left out."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

Score = Annotated[float, Meta(description="0 to 1, or the logit if the request says so.")]
Index = Annotated[int, Meta(description="Index of the document in the request, from 0.", ge=0)]


class Usage(Struct):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class Result(Struct):
    """A document's score, most relevant first."""

    index: Index
    relevance_score: Score
    document: Annotated[Any, Meta(description="Only with return_documents.")] = UNSET


class ApiVersion(Struct):
    """The version of Cohere's API whose answer this is."""

    version: str = "2"


class BilledUnits(Struct):
    """Cohere's unit: a query with up to 100 documents."""

    search_units: int


class Tokens(Struct):
    """Tokens as Cohere names them."""

    input_tokens: int
    output_tokens: int = 0


class Meta_(Struct, rename=None):  # noqa: N801  # msgspec's Meta is another
    """What Cohere's answers say about the call."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens


class CohereAnswer(Struct):
    """The answer to `documents`. Callers of Cohere, Jina, vLLM, LocalAI, Xinference, Together and infinity read it."""

    id: str
    created: int
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta_
    object: str = "rerank"


class TeiResult(Struct):
    """An item of the list that text-embeddings-inference answers with."""

    index: Index
    score: Score
    text: Annotated[str | UnsetType, Meta(description="Only with return_text.")] = UNSET


class VoyageUsage(Struct):
    """Tokens as Voyage counts them."""

    total_tokens: int


class VoyageAnswer(Struct):
    """The answer to a request with `top_k`, or below `/voyage`."""

    data: list[Result]
    model: str
    usage: VoyageUsage
    object: str = "list"


class NimResult(Struct):
    """A document's logit, largest first."""

    index: Index
    logit: float


class NimAnswer(Struct):
    """The answer to `passages`."""

    rankings: list[NimResult]
    usage: Usage


class ScoreResult(Struct):
    """The score of a pair."""

    index: Index
    score: Score
    object: str = "score"


class ScoreUsage(Struct):
    """Tokens of the pairs; 0 if the request pairs several texts with several."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ScoreAnswer(Struct):
    """The answer of `/score`, in the order of the pairs."""

    id: str
    created: int
    model: str
    data: list[ScoreResult]
    usage: ScoreUsage
    object: str = "list"
