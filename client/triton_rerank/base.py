"""What both clients share: configuration, planning, the record of a call. No I/O."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from triton_rerank.errors import InvalidRequestError, RerankError, UnexpectedResponseError
from triton_rerank.ranking.batching import Limits, Part, Scores, encode_cell
from triton_rerank.ranking.relevance import Relevance
from triton_rerank.ranking.rerank import RerankJob, RerankOptions
from triton_rerank.ranking.score import ScoreJob
from triton_rerank.ranking.validation import check_int, check_timeout, kind_of
from triton_rerank.transport.connection import TLS, MetadataSource, check_metadata, check_urls
from triton_rerank.transport.exchange import Attempt, Exchange
from triton_rerank.transport.responses import model_info, read_json, read_scores
from triton_rerank.transport.retry import Deadline, RetryBudget
from triton_rerank.transport.servers import Servers
from triton_rerank.transport.tracing import Tracer
from triton_rerank.transport.untyped import Message, Rpc
from triton_rerank.types import CallOptions, DocumentT, ModelInfo, RerankResponse, Timing

if TYPE_CHECKING:
    from triton_rerank.transport.messages import Request

logger: logging.Logger = logging.getLogger("triton_rerank")

READY_PAIR = ("ready", "ready")


class Job(Protocol):
    """What a call computes: rounds of rows, until there are none."""

    @property
    def parameters(self) -> Mapping[str, int]:
        """Request parameters of every request."""
        ...

    def next_round(self, limits: Limits) -> list[Part]:
        """The requests to send next; none when the call is done."""
        ...

    def take(self, part: Part, scores: Scores) -> None:
        """Take over the scores of one request."""
        ...


class Call:
    """One public call while it runs: its deadline, and where its time goes."""

    def __init__(self, name: str, timeout: float | None, metadata: tuple[tuple[str, str], ...]) -> None:
        self.name = name
        self.started: float = time.monotonic()
        self.deadline: Deadline = Deadline.after(timeout, self.started)
        self.metadata = metadata
        self.server_s: float = 0.0
        self.num_requests = 0
        self.num_sent = 0
        self.begun = False
        """Whether a server has computed something of it."""

    def timing(self) -> Timing:
        """The account so far."""
        total_s = time.monotonic() - self.started
        return Timing(
            total_s,
            self.server_s,
            total_s - self.server_s,
            self.num_requests,
            self.num_sent - self.num_requests,
        )


class BaseClient:
    """Configuration and everything that decides; the clients add the talking."""

    def __init__(
        self,
        url: str | Sequence[str] = "localhost:8001",
        model: str = "reranker",
        *,
        timeout: float | None = 60.0,
        max_retries: int = 2,
        pairs_per_request: int = 32,
        tls: TLS | bool = False,
        metadata: MetadataSource | None = None,
        compression: Literal["gzip", "deflate"] | None = None,
        request_size: int | None = None,
    ) -> None:
        if request_size is not None:
            warnings.warn("request_size is now pairs_per_request", DeprecationWarning, stacklevel=2)
            pairs_per_request = request_size
        if not isinstance(model, str) or not model:
            raise InvalidRequestError(f"model is not a name (got {kind_of(model)}); pass the Triton model's name")
        if compression not in (None, "gzip", "deflate"):
            raise InvalidRequestError(f'compression is {compression!r}; pass "gzip", "deflate" or None')
        if not isinstance(tls, (TLS, bool)):
            raise InvalidRequestError(f"tls is {kind_of(tls)}; pass True, False or TLS(...)")
        self.model = model
        self._servers = Servers(check_urls(url))
        self._timeout = check_timeout(timeout)
        self._max_retries = check_int(max_retries, "max_retries", at_least=0, remedy="pass 0 or more")
        self._pairs_per_request = check_int(pairs_per_request, "pairs_per_request", at_least=1, remedy="pass 1 or more")
        self._tls = (TLS() if tls else None) if isinstance(tls, bool) else tls
        if self._tls is not None:
            self._tls.read()  # a wrong path is told here, not at the first call
        self._metadata = metadata if callable(metadata) else check_metadata(metadata or {})
        self._compression = compression
        self._budget = RetryBudget()
        self._config: Message = None
        self._info: ModelInfo | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._tracer = Tracer()
        from triton_rerank.transport import messages  # here, since gRPC takes longer to load than the rest

        self._messages = messages

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={list(self._servers.urls)}, model={self.model!r})"

    @contextmanager
    def _call(self, name: str, timeout: float | None) -> Iterator[Call]:
        """The frame of a public call: its span, its log line."""
        if self._closed:
            raise RuntimeError("the client is closed")
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        pairs = check_metadata(self._metadata()) if callable(self._metadata) else self._metadata
        with self._tracer.span(f"triton_rerank.{name}", {"triton_rerank.model": self.model}) as span:
            call = Call(name, seconds, (*pairs, *self._tracer.headers()))
            try:
                yield call
            except RerankError as error:
                self._log(call, type(error).__name__)
                raise
            else:
                self._log(call, "done")
            finally:
                span.set_attribute("triton_rerank.requests", call.num_requests)
                span.set_attribute("triton_rerank.retries", call.num_sent - call.num_requests)

    def _log(self, call: Call, outcome: str) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            timing = call.timing()
            logger.debug(
                "%s %s in %.1f ms (server %.1f ms), %d requests, %d retries",
                call.name,
                outcome,
                timing.total_s * 1e3,
                timing.server_s * 1e3,
                timing.num_requests,
                timing.num_retries,
            )

    def _exchange(self, requests: Sequence[Request], call: Call) -> Exchange:
        call.num_requests += len(requests)
        return Exchange(
            len(requests),
            servers=self._servers,
            deadline=call.deadline,
            budget=self._budget,
            max_retries=self._max_retries,
            now=time.monotonic(),
            begun=call.begun,
        )

    def _arguments(self, request: Request, call: Call, *, begun: bool) -> dict[str, Any]:
        """What a procedure is called with; time left is told to gRPC and to Triton, whose turn it is to Triton."""
        remaining_s = call.deadline.remaining(time.monotonic())
        self._messages.set_timeout(request, remaining_s)
        self._messages.set_priority(request, begun=begun)
        return {"request": request.message, "timeout": remaining_s, "metadata": call.metadata}

    def _rerank_job(self, query: str, documents: Iterable[DocumentT], options: CallOptions) -> RerankJob[DocumentT]:
        return RerankJob(query, documents, RerankOptions.check(options))

    def _requests(self, job: Job, parts: Sequence[Part]) -> list[Request]:
        if logger.isEnabledFor(logging.DEBUG):
            shown = [f"{len(part.rows)} rows of {len(part.documents)} bytes" for part in parts[:4]]
            more = ", ..." if len(parts) > 4 else ""
            logger.debug("cut into %d requests: %s%s", len(parts), ", ".join(shown), more)
        return [self._messages.infer_request(self.model, part, job.parameters) for part in parts]

    def _check_priority(self, job: Job) -> None:
        """Refuse a priority that the server does not have: Triton would take its default instead, in silence."""
        if (priority := job.parameters.get("priority")) is None:
            return
        levels = self._known_info().priority_levels
        if levels is None:
            raise InvalidRequestError(f"priority is {priority}, but model {self.model!r} has no priorities; pass None")
        if priority > levels:
            raise InvalidRequestError(f"priority is {priority}; pass 1 (first) to {levels}, or None")

    def _failed(self, exchange: Exchange, attempt: Attempt, error: Rpc) -> None:
        """Plan what follows a failed attempt, or raise what it means for the call."""
        meaning = self._messages.error_from_rpc(error, self._servers.urls[attempt.server])
        try:
            exchange.failed(attempt, meaning, time.monotonic())
        except RerankError as final:
            raise final from error

    def _scores(self, response: Message, part: Part, attempt: Attempt) -> Scores:
        try:
            return read_scores(response, len(part.rows))
        except UnexpectedResponseError as error:
            raise UnexpectedResponseError(f"{self._servers.urls[attempt.server]}: {error}") from None

    def _limits(self) -> Limits:
        """Limits from what the server has told so far."""
        rows = min(self._pairs_per_request, max(1, self._config.max_batch_size))
        if self._info is None or self._info.default_max_length is None:
            return Limits(rows)
        return Limits(rows, self._info.default_max_length)

    def _response(self, job: RerankJob[DocumentT], call: Call) -> RerankResponse[DocumentT]:
        results, usage = job.results(Relevance.of(self._config)), job.usage()
        return RerankResponse(results, self.model, usage, call.timing())

    def _info_request(self, tokenizer: str) -> Request:
        query, document = (encode_cell(text.encode()) for text in READY_PAIR)
        return self._messages.info_request(tokenizer, Part((0,), query, document))

    def _known_info(self) -> ModelInfo:
        if self._info is None:
            raise RuntimeError("model_info was read before it was asked for")
        return self._info

    def _model_info(self, about: Message, configs: Sequence[Message]) -> ModelInfo:
        said = read_json(about, "model_info")
        scale = Relevance.of(self._config).logit_scale
        return model_info(self.model, said, self._config.max_batch_size, configs, scale)

    def _scores_of(self, job: ScoreJob, normalize: bool) -> list[float]:
        """Relevance scores or raw logits of pairs, in their order."""
        relevance = Relevance.of(self._config)
        return [relevance(logit) for logit in job.logits] if normalize else list(job.logits)
