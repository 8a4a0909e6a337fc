"""Settings of the adapters whose framework builds its components on pydantic: LangChain and LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.integrations.clients import CONNECTION_SETTINGS, Clients, tls_to_dict
from triton_rerank.integrations.order import OnError
from triton_rerank.ranking.validation import check_cascade, renamed_request_size
from triton_rerank.transport.connection import TLS
from triton_rerank.types import Cascade

Self = TypeVar("Self", bound="RerankSettings")


class RerankSettings(BaseModel):
    """The arguments of `RerankClient` and its `rerank`, as fields.

    The first call opens connections, which stay open. Settings of connections can't change while one is open.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    url: str | list[str] = "localhost:8001"
    """"host:port" of Triton's gRPC endpoint, several of them, or "dns:///name:port"."""
    model: str = "reranker"
    """Name of the ensemble in Triton."""
    top_n: int | None = Field(default=None, ge=1)
    """How many documents to return; all of them if None."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of a query and document together after truncation; the server's default if None."""
    query_max_length: int | None = Field(default=None, ge=0)
    """Tokens of the query after truncation; three quarters of `max_length` if None. 0 cuts the longer text first."""
    min_relevance_score: float | None = Field(default=None, ge=0, le=1)
    """Leave out documents whose relevance score is below it, before `top_n` is taken."""
    long_documents: Literal["truncate", "chunk"] = "truncate"
    """Whether a document beyond `max_length` is truncated, or scored in chunks."""
    priority: int | None = Field(default=None, ge=1)
    """Priority of the requests in the server's queue, 1 the highest; the server's default if None."""
    cascade: int | float | Cascade | None = None
    """Rank in two stages: late interaction orders all documents, and `model` scores the best of them: a number, a share
    as a float, or a `Cascade`. The result holds those that `model` scored."""
    timeout: float | None = Field(default=60.0, gt=0)
    """Seconds for a whole call, retries included; None for no limit."""
    max_retries: int = Field(default=2, ge=0)
    """Retries of a request after an overload or a connection failure."""
    pairs_per_request: int | None = Field(default=None, ge=1)
    """Pairs in one request at most; as many as suit the server if None.
    `request_size` is its deprecated name."""
    tls: bool | TLS = False
    """True for gRPC's bundled root certificates, or a `TLS`. Serialization writes paths of files, never PEM bytes."""
    metadata: dict[str, SecretStr] | Callable[[], Mapping[str, str]] | None = Field(default=None, exclude=True)
    """gRPC metadata such as {"authorization": "Bearer ..."}, or a function that returns it. Serialization
    leaves it out: set it again on a component that was loaded."""
    compression: Literal["gzip", "deflate"] | None = None
    """Compression of messages to the server."""

    on_error: OnError = "raise"
    """What follows when the server can't rank: the client's error ("raise"), or the first `top_n` documents as they
    came in, and a warning in the log ("keep_order"). An invalid request raises its error in both."""

    _clients: Clients = PrivateAttr(default_factory=Clients)

    @field_validator("cascade")
    @classmethod
    def _checked(cls, cascade: int | float | Cascade | None) -> Cascade | None:
        return check_cascade(cascade)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, settings: Any) -> Any:  # noqa: ANN401  # whatever the caller passed
        if isinstance(settings, dict) and "request_size" in settings:
            others = {name: value for name, value in settings.items() if name != "request_size"}
            return {**others, "pairs_per_request": renamed_request_size(settings["request_size"])}
        return settings

    def close(self) -> None:
        """Close the connections of synchronous calls. A later call opens new ones."""
        self._clients.close()

    async def aclose(self) -> None:
        """Close the connections of synchronous calls and those of this event loop."""
        await self._clients.aclose()

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401  # of any field
        if name in CONNECTION_SETTINGS:
            self._clients.check_change(name)
        super().__setattr__(name, value)

    def __copy__(self: Self) -> Self:
        copied = super().__copy__()
        copied._clients = Clients()  # a copy may get another address
        return copied

    @field_serializer("tls")
    def _tls_paths(self, tls: bool | TLS) -> dict[str, str] | bool:
        return tls_to_dict(tls)

    def _client(self) -> RerankClient:
        return self._clients.get(self._connection)

    def _async_client(self) -> AsyncRerankClient:
        return self._clients.get_async(self._connection)

    def _connection(self) -> dict[str, Any]:
        metadata: Any = self.metadata
        if isinstance(metadata, dict):
            metadata = {key: secret.get_secret_value() for key, secret in metadata.items()}
        return {
            "url": self.url,
            "model": self.model,
            "timeout": None,  # each call passes its own
            "max_retries": self.max_retries,
            "pairs_per_request": self.pairs_per_request,
            "tls": self.tls,
            "metadata": metadata,
            "compression": self.compression,
        }

    def _options(self) -> dict[str, Any]:
        return {
            "top_n": self.top_n,
            "max_length": self.max_length,
            "query_max_length": self.query_max_length,
            "min_relevance_score": self.min_relevance_score,
            "long_documents": self.long_documents,
            "priority": self.priority,
            "cascade": self.cascade,
            "timeout": self.timeout,
        }
