"""What an operator decides about a gateway."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.validation import MAX_DOCUMENTS, check_cascade, check_long_documents
from triton_rerank.types import Cascade, LongDocuments

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and rules of a gateway. `triton-rerank gateway --help` describes them.

    Raises:
        InvalidRequestError: A value is unusable.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys of which a POST must carry one; without keys every caller is served."""
    model_aliases: tuple[str, ...] = ()
    """Further names of the model in `/v1/models`."""
    strict_model: bool = False
    """Whether a request that names another model is refused; it is served otherwise."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call; "*" stands for all."""
    max_body: int = 32 * MEGABYTE
    """Bytes of a request's body."""
    max_documents: int = 1_000
    """Documents of a call, up to the client's own limit."""
    max_in_flight: int = 256
    """Calls at the reranker at the same time; more are refused with 429."""
    timeout: float = 30.0
    """Seconds for the reranker's answer. Callers give up after 10 to 60 s."""
    body_timeout: float = 15.0
    """Seconds for a request's headers, and as many for its body."""
    long_documents: LongDocuments = "truncate"
    """What happens to a document beyond the model's max_length."""
    cascade: Cascade | None = None
    """Two stages of a rerank call. The reranker scores at least as many documents as the caller wants results, so that
    all scores of an answer are on one scale."""
    caller_limits: bool = False
    """Whether callers choose the length: `max_tokens_per_doc` and `max_chunks_per_doc` count then."""

    def __post_init__(self) -> None:
        check_long_documents(self.long_documents)
        check_cascade(self.cascade)
        for name, most in (("max_body", math.inf), ("max_documents", MAX_DOCUMENTS), ("max_in_flight", math.inf)):
            if not 1 <= getattr(self, name) <= most:
                limit = "" if most == math.inf else f" and {most:,} at most"
                raise InvalidRequestError(f"{name} is {getattr(self, name)}; pass 1 or more{limit}")
        for name in ("timeout", "body_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidRequestError(f"{name} is {getattr(self, name)}; pass seconds above 0")
        for key in self.api_keys:
            if not (key.isascii() and key.isprintable()) or not key.strip() or key != key.strip():
                raise InvalidRequestError("an API key is not printable ASCII without spaces around it")
