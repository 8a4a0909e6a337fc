"""What both clients share: configuration, decisions, the record of a call. No I/O."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from triton_rerank.errors import (
    ClientStateError,
    InvalidRequestError,
    ModelNotFoundError,
    OtherVersionError,
    RerankError,
    ServerUnavailableError,
    UnexpectedResponseError,
)
from triton_rerank.ranking.batching import Job, Part, Scores
from triton_rerank.ranking.cascade import CascadeJob, StageJob
from triton_rerank.ranking.relevance import Relevance
from triton_rerank.ranking.rerank import RerankOptions
from triton_rerank.ranking.score import ScoreJob
from triton_rerank.ranking.validation import check_int, check_timeout, kind_of, renamed_request_size
from triton_rerank.transport.call import Call, Questions, Target
from triton_rerank.transport.connection import (
    TLS,
    Message,
    MetadataSource,
    Rpc,
    check_metadata,
    check_urls,
    sends_token_in_plain_text,
)
from triton_rerank.transport.exchange import Attempt, Exchange
from triton_rerank.transport.responses import read_scores
from triton_rerank.transport.tracing import Tracer
from triton_rerank.types import CallOptions, DocumentT, RerankResponse

if TYPE_CHECKING:
    from triton_rerank.transport.messages import Request

logger: logging.Logger = logging.getLogger("triton_rerank")

_PAIRS_IN_FLIGHT = 512
"""Of one call at once: they keep any server busy, and another call waits behind no more of them."""

_MOST_STARTS = 10
"""How often a call may start over. A rolling update makes it do so once, seldom twice."""


def ready_pair() -> tuple[str, str]:
    """A pair that is not in the server's cache of late interaction, and so reaches every model."""
    now = time.time_ns()
    return f"ready {now}", f"{now} ready"


def _make(client_class: type[BaseClient], settings: dict[str, Any]) -> BaseClient:
    return client_class(**settings)


class BaseClient:
    """Configuration and decisions; `RerankClient` and `AsyncRerankClient` add the I/O."""

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        model: str = "reranker",
        *,
        timeout: float | None = 60.0,
        max_retries: int = 2,
        pairs_per_request: int | None = None,
        tls: TLS | bool = False,
        metadata: MetadataSource | None = None,
        compression: Literal["gzip", "deflate"] | None = None,
        request_size: int | None = None,
    ) -> None:
        if request_size is not None:
            pairs_per_request = renamed_request_size(request_size)
        if not isinstance(model, str) or not model:
            raise InvalidRequestError(f"model is not a name (got {kind_of(model)}); pass the Triton model's name")
        if compression not in (None, "gzip", "deflate"):
            raise InvalidRequestError(f'compression is {compression!r}; pass "gzip", "deflate" or None')
        if not isinstance(tls, (TLS, bool)):
            raise InvalidRequestError(f"tls is {kind_of(tls)}; pass True, False or TLS(...)")
        self.model = model
        self._urls = check_urls(url)
        self._timeout = check_timeout(timeout)
        self._max_retries = check_int(max_retries, "max_retries", at_least=0, remedy="pass 0 or more")
        self._pairs_per_request = (
            None
            if pairs_per_request is None
            else check_int(pairs_per_request, "pairs_per_request", at_least=1, remedy="pass 1 or more, or None")
        )
        self._tls = (TLS() if tls else None) if isinstance(tls, bool) else tls
        if self._tls is not None:
            self._tls.read()  # a wrong path is an error now, not at the first call
        self._metadata = metadata if callable(metadata) else check_metadata(metadata or {})
        self._warned = False
        if not callable(self._metadata):
            self._warn_of_plain_text(self._metadata)
        self._compression = compression
        self._closed = False
        self._tracer = Tracer()
        self._start_afresh()
        from triton_rerank.transport import messages  # here, since gRPC takes longer to load than the rest

        self._messages = messages

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={list(self._urls)}, model={self.model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the settings; each opens connections of its own."""
        settings = {
            "url": list(self._urls),
            "model": self.model,
            "timeout": self._timeout,
            "max_retries": self._max_retries,
            "pairs_per_request": self._pairs_per_request,
            "tls": self._tls or False,
            "metadata": self._metadata if callable(self._metadata) else dict(self._metadata),
            "compression": self._compression,
        }
        return _make, (type(self), settings)

    def _start_afresh(self) -> None:
        """The state of a client that has not made a call in this process."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._targets: dict[str, Target] = {}

    def _target(self, model: str) -> Target:
        """The state of calls to one model."""
        with self._lock:
            if model not in self._targets:
                self._targets[model] = Target(model, self._urls)
            return self._targets[model]

    def _check_process(self) -> None:
        """In a forked child, forget the parent's connections: gRPC's threads do not survive a fork."""
        if self._pid != os.getpid():
            self._disinherit()
            self._start_afresh()

    def _disinherit(self) -> None:
        """Put the parent's connections aside without closing them."""

    def _warn_of_plain_text(self, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        if not self._warned and sends_token_in_plain_text(self._urls, self._tls, metadata):
            self._warned = True
            warnings.warn(
                "the metadata holds credentials, and the connection is not encrypted; pass tls",
                UserWarning,
                stacklevel=4,
            )

    @contextmanager
    def _call(self, name: str, timeout: float | None) -> Iterator[Call]:
        """The frame of a public call: its span, its log line."""
        if self._closed:
            raise ClientStateError("the client is closed")
        self._check_process()
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        pairs = self._metadata
        if callable(pairs):
            pairs = check_metadata(pairs())
            self._warn_of_plain_text(pairs)
        with self._tracer.span(f"triton_rerank.{name}", {"triton_rerank.model": self.model}) as span:
            call = Call(name, seconds, (*pairs, *self._tracer.headers()), self._target(self.model))
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

    def _exchange(self, questions: Questions, call: Call) -> Exchange:
        return Exchange(
            questions.count,
            servers=call.target.servers,
            deadline=call.deadline,
            budget=call.target.budget,
            max_retries=0 if call.name == "is_ready" else self._max_retries,
            most_running=questions.most_running,
            priority=questions.priority,
            begun=call.begun or questions.about_model,
            quick=questions.about_model,
        )

    def _account(self, exchange: Exchange, questions: Questions, call: Call) -> None:
        """Close the books of an exchange."""
        exchange.abandon()
        if not questions.about_model:
            call.num_sent += exchange.num_sent
            call.num_requests += questions.count

    def _arguments(self, request: Request, call: Call, attempt: Attempt) -> dict[str, Any]:
        """RPC arguments; the remaining time of the attempt goes to both gRPC and Triton."""
        seconds = call.deadline.remaining(time.monotonic()) if attempt.limit_s is None else attempt.limit_s
        self._messages.set_timeout(request, seconds)
        self._messages.set_priority(request, begun=attempt.begun)
        return {"request": request.message, "timeout": seconds, "metadata": call.metadata}

    def _rerank_job(self, query: str, documents: Iterable[DocumentT], options: CallOptions) -> CascadeJob[DocumentT]:
        return CascadeJob(query, documents, RerankOptions.check(options), self.model)

    @contextmanager
    def _stage(self, stage: StageJob[DocumentT], call: Call) -> Iterator[None]:
        """The frame of one stage of a call: its model, its share of the time, and what follows if it fails."""
        call.begin_stage(self._target(stage.model), share=0.5 if stage.optional else 1.0)
        try:
            yield
        except RerankError as error:
            if not stage.survives(error):
                if not stage.title:
                    raise
                raise stage.named(error) from error
            logger.warning("%s: %s", type(error).__name__, stage.named(error))
        else:
            stage.done(Relevance.of(call.target.served.config), call.stage_timing(), call.version)

    def _questions(self, job: Job, parts: Sequence[Part], call: Call) -> Questions:
        if logger.isEnabledFor(logging.DEBUG):
            shown = [f"{len(part.rows)} rows of {sum(map(len, part.document_texts))} bytes" for part in parts[:4]]
            more = ", ..." if len(parts) > 4 else ""
            logger.debug("cut into %d requests: %s%s", len(parts), ", ".join(shown), more)
        return Questions(
            len(parts),
            lambda index: self._messages.infer_request(call.target.model, parts[index], job.parameters, call.version),
            most_running=max(2, _PAIRS_IN_FLIGHT // max(len(part.rows) for part in parts)),
            priority=self._messages.priority_of(job.parameters),
        )

    def _cut_again(self, parts: Iterable[Part], call: Call) -> list[Part]:
        rows = call.target.served.limits(self._pairs_per_request).rows
        return [smaller for part in parts for smaller in part.split(rows)]

    def _failed(self, exchange: Exchange, attempt: Attempt, error: Rpc, call: Call) -> None:
        """Plan what follows a failed attempt, or raise the error of the call."""
        meaning = self._messages.error_from_rpc(error, call.target.servers.urls[attempt.server])
        if call.version and isinstance(meaning, ModelNotFoundError):  # a server has answered for this model before
            meaning = OtherVersionError(str(meaning))
        elif isinstance(meaning, OtherVersionError):  # any version would do: Triton loads or unloads a model
            meaning = ServerUnavailableError(str(meaning))
        try:
            exchange.failed(attempt, meaning, time.monotonic())
        except RerankError as final:
            raise final from error

    def _start_over(self, job: Job, call: Call, error: OtherVersionError) -> None:
        """Have all rows of a stage scored again: no server has the version any more that answered some of them.

        Raises:
            ServerUnavailableError: That has happened too often: the servers have many versions, or change them.
        """
        call.num_starts += 1
        if call.num_starts == _MOST_STARTS:
            raise ServerUnavailableError(f"no version of the model answered all requests: {error}") from error
        logger.debug("the call starts over: %s", error)
        job.restart()
        call.start_over()

    def _scores(self, response: Message, part: Part, attempt: Attempt, call: Call) -> Scores:
        """The scores in an answer; later requests of the stage demand the version of the model that computed it."""
        call.begun, call.version = True, str(response.model_version)
        try:
            return read_scores(response, len(part.rows))
        except UnexpectedResponseError as error:
            raise UnexpectedResponseError(f"{call.target.servers.urls[attempt.server]}: {error}") from None

    def _response(self, job: CascadeJob[DocumentT], call: Call) -> RerankResponse[DocumentT]:
        results, usage = job.results(), job.usage()
        return RerankResponse(results, self.model, usage, call.timing(), job.reports())

    def _info_request(self, tokenizer: str) -> Request:
        query, document = (text.encode() for text in ready_pair())
        return self._messages.info_request(tokenizer, Part((0,), query, [document]))

    def _scores_of(self, job: ScoreJob, normalize: bool, call: Call) -> list[float]:
        """Relevance scores or raw logits of pairs, in their order."""
        relevance = Relevance.of(call.target.served.config)
        return [relevance(logit) for logit in job.logits] if normalize else list(job.logits)


# Python names this function in its message about an unknown argument.
BaseClient.__init__.__qualname__ = "RerankClient.__init__"
