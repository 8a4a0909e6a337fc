"""The client for threads: the I/O of `BaseClient` over blocking gRPC."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Literal, overload

from triton_rerank.base import BaseClient, logger, ready_pair
from triton_rerank.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    OtherVersionError,
    RequestCancelledError,
    RerankError,
)
from triton_rerank.ranking.batching import Job
from triton_rerank.ranking.score import ScoreJob
from triton_rerank.ranking.validation import check_int, check_searches, name_search
from triton_rerank.transport.call import Call, Questions
from triton_rerank.transport.connection import Channel, Message, Rpc, Stub
from triton_rerank.transport.exchange import Attempt
from triton_rerank.transport.model import name_models
from triton_rerank.types import CallOptions, DocumentT, ModelInfo, RerankResponse

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

if TYPE_CHECKING:
    from triton_rerank.transport.messages import Request


class RerankClient(BaseClient):
    """Reranks documents with a cross-encoder, or by late interaction, that Triton serves. Share one among threads.

    Connections open with the first call. A client that is used in a forked child opens connections of its own there;
    a copy or pickle of a client holds its settings, not its connections.

    Args:
        url: "host:port" of Triton's gRPC endpoint; a list of them, used round-robin, past those that do not answer;
            or "dns:///name:port", whose addresses gRPC uses round-robin. If None, the environment variable
            TRITON_RERANK_URL (separated by commas), else localhost:8001.
        model: Name of the ensemble in Triton.
        timeout: Seconds for a whole call unless the call passes its own; None for no limit.
        max_retries: How often a request may be sent again to an overloaded server. A server that is gone is tried
            again with backoff until the timeout, or for 10 s if it has never answered. 0 turns both off. Moving to
            another healthy server does not count.
        pairs_per_request: Pairs in one request at most. If None, the server's max_batch_size where the server computes
            no padding (ONNX Runtime, OpenVINO), and 32 pairs of similar length where it does (TensorRT).
        tls: True for gRPC's bundled roots, or a `TLS` with certificates.
        metadata: gRPC metadata of every request, such as {"authorization": "Bearer ..."}, or a function that
            returns it. Never logged.
        compression: Compression of messages to the server: "gzip", "deflate", or none.
        request_size: Deprecated name of `pairs_per_request`.

    Raises:
        InvalidRequestError: An argument is unusable.
    """

    _stubs: list[Stub] | None = None
    _channels: tuple[Channel, ...] = ()
    _inherited: tuple[Channel, ...] = ()

    def rerank(
        self,
        query: str,
        documents: Iterable[DocumentT],
        **options: Unpack[CallOptions],
    ) -> RerankResponse[DocumentT]:
        """Order `documents` by relevance to `query`, most relevant first.

        Args:
            query: What was searched for.
            documents: Texts, mappings with a "text" key, or `Document`s; 0 to 10,000 of them. They are not
                changed.
            **options: Keyword arguments, all optional:

                - top_n: Number of results to return; all of them by default.
                - max_length: Tokens of a pair after truncation; the server's default if None.
                - query_max_length: Tokens of the query after truncation; three quarters of `max_length` if None. 0 cuts
                  the longer of query and document first, as sentence-transformers does.
                - min_relevance_score: Drop results below it, before `top_n` is applied.
                - long_documents: "truncate" (the default) reads a document up to `max_length`. "chunk" splits it into
                  overlapping parts until none is truncated; the best part determines the score and is
                  described in `RerankResult.chunk`.
                - text_from: How fields become text: a template such as "{title}: {price:.2f} EUR", a list of field
                  names whose values are joined by newlines, or a function of the document.
                - priority: Order in which waiting requests are served, 1 first. The default is the server's, 2 as
                  shipped; bulk jobs use 3.
                - cascade: Two stages: late interaction orders all documents, this model scores the best of them, and
                  the others follow in late interaction's order (see `RerankResult.stage`). An int is the number of
                  documents that this model scores, a float their share; a `Cascade` names another first stage. If that
                  number is not below that of the documents, the first stage is left out.
                - instruction: What a model that takes instructions (Qwen3-Reranker) is told to look for; by default its
                  own, `ModelInfo.instruction`.
                - timeout: Seconds for the whole call, both stages and retries included; the client's if None.

        Returns:
            Results by descending logit; equal logits keep the order of `documents`.
            An empty `documents` gives an empty response without asking the server.

        Raises:
            InvalidRequestError: An argument is unusable; the message names it and its index.
            ModelNotFoundError: The server has no such model.
            ServerUnavailableError: No server answered, or (ServerOverloadedError) none had room.
            RequestTimeoutError: The timeout passed first.
            InferenceError: The model failed.
            UnexpectedResponseError: The answer breaks the tensor contract.
        """
        with self._call("rerank", options.pop("timeout", None)) as call:
            job = self._rerank_job(query, documents, options)
            for stage in job.stages():
                with self._stage(stage, call):
                    self._learn(call, info=stage.job.needs_info)
                    self._run(stage.job, call)
            return self._response(job, call)

    @overload
    def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        return_exceptions: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> list[RerankResponse[DocumentT]]: ...

    @overload
    def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        return_exceptions: bool,
        **options: Unpack[CallOptions],
    ) -> list[RerankResponse[DocumentT] | RerankError]: ...

    def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        return_exceptions: bool = False,
        **options: Unpack[CallOptions],
    ) -> Sequence[RerankResponse[DocumentT] | RerankError]:
        """Rerank the documents of many queries, several at a time.

        Args:
            searches: (query, documents) pairs.
            concurrency: Calls in flight at once.
            progress: Called after each search with the numbers done and total.
            return_exceptions: Whether a search that fails leaves its error in the result, as in asyncio.gather, so
                that the other responses are kept.
            **options: The options of `rerank`; `timeout` is for each query's call.

        Returns:
            The responses in the order of `searches`.

        Raises:
            RerankError: As `rerank`, with the index of the search; the first failure cancels the rest.
        """
        todo = check_searches(searches)
        workers = check_int(concurrency, "concurrency", at_least=1, remedy="pass 1 or more")

        def one(index: int) -> RerankResponse[DocumentT] | RerankError:
            query, documents = todo[index]
            try:
                return self.rerank(query, documents, **options)
            except RerankError as error:
                named = name_search(error, index)
                if return_exceptions:
                    return named
                raise named from error

        outcomes: list[RerankResponse[DocumentT] | RerankError] = []
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(min(workers, max(1, len(todo))), thread_name_prefix="rerank_many")
            stack.callback(pool.shutdown, cancel_futures=True)
            # Each search runs in a copy of the caller's context: trace spans, tenants of a metadata function.
            calls = [pool.submit(copy_context().run, one, index) for index in range(len(todo))]
            for call in calls:
                outcomes.append(call.result())
                if progress is not None:
                    progress(len(outcomes), len(todo))
        return outcomes

    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        normalize: bool = True,
        max_length: int | None = None,
        query_max_length: int | None = None,
        priority: int | None = None,
        instruction: str | None = None,
        timeout: float | None = None,
    ) -> list[float]:
        """Score (query, document) pairs.

        Args:
            pairs: Any number of pairs of texts; queries may differ.
            normalize: True for relevance scores, 0 to 1; False for raw logits.
            max_length: See `rerank`.
            query_max_length: See `rerank`.
            priority: See `rerank`.
            instruction: See `rerank`.
            timeout: Seconds for the whole call.

        Returns:
            One number for each pair, in the order of `pairs`.

        Raises:
            RerankError: As `rerank`.
        """
        with self._call("score", timeout) as call:
            job = ScoreJob(pairs, max_length, query_max_length, priority, instruction)
            if job.logits:
                self._learn(call, info=job.needs_info)
                self._run(job, call)
            return self._scores_of(job, normalize, call)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """The server's description of the model: checkpoint, precision, limits.

        Raises:
            RerankError: As `rerank`.
        """
        with self._call("model_info", timeout) as call:
            call.target.served.outdate()
            self._learn(call, info=True)
            return call.target.served.info

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether a real pair is scored: the server is up, the model loaded, an answer comes in time. Never retried.

        Raises:
            InvalidRequestError: The timeout is unusable.
            ClientStateError: The client is closed.
        """
        with self._call("is_ready", timeout) as call:
            try:
                job = ScoreJob([ready_pair()])
                self._learn(call)
                self._run(job, call)
            except RerankError as error:
                logger.debug("not ready: %s", error)
                return False
            return True

    def close(self) -> None:
        """Close the connections. Calls in flight in other threads end with RequestCancelledError."""
        with self._lock:
            self._closed = True
            channels, self._channels, self._stubs = self._channels, (), None
        for channel in channels:
            channel.close()

    def __enter__(self) -> RerankClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, job: Job, call: Call) -> None:
        """Send a job's rounds until it has no more rows to score."""
        call.target.served.check(job.parameters)
        while parts := job.next_round(call.target.served.limits(self._pairs_per_request)):
            while parts:
                left = dict(enumerate(parts))
                try:
                    for attempt, response in self._ask(self._questions(job, parts, call), call):
                        part = left.pop(attempt.index)
                        job.take(part, self._scores(response, part, attempt, call))
                except OtherVersionError as error:
                    self._start_over(job, call, error)
                    left = {}
                except InvalidRequestError as error:
                    if call.refreshed or not call.target.served.refused(error):
                        raise
                    call.refreshed = True
                    self._learn(call)
                parts = self._cut_again(left.values(), call)

    def _learn(self, call: Call, *, info: bool = False) -> None:
        """Ask the server for what is not known of the model: configurations, and its description if that is needed."""
        served, servers = call.target.served, call.target.servers
        if served.must_ask(servers.failed_at):
            try:
                served.adopt(self._ask_one(self._messages.config_request(call.target.model), call).config)
            except ModelNotFoundError as error:
                index = None
                with suppress(RerankError):  # the list of models may be closed to callers
                    index = self._ask_one(self._messages.index_request(), call)
                raise name_models(error, index) from error.__cause__
        if served.must_ask_steps:
            steps = self._messages.steps_of(served.config)
            configs = [self._ask_one(self._messages.config_request(step), call).config for step in steps]
            if configs and (encoder := self._messages.encoder_of(configs[-1])):
                configs.append(self._ask_one(self._messages.config_request(encoder), call).config)
            served.adopt_steps(configs)
        if info and served.must_describe:
            tokenizer = self._messages.tokenizer_of(served.config)
            served.describe(self._ask_one(self._info_request(tokenizer), call))

    def _ask_one(self, request: Request, call: Call) -> Message:
        questions = Questions(1, lambda _: request, about_model=True)
        return next(response for _, response in self._ask(questions, call))

    def _ask(self, questions: Questions, call: Call) -> Iterator[tuple[Attempt, Message]]:
        """Send requests together and yield each with its answer as it comes. The end cancels the rest."""
        stubs = self._open()
        exchange = self._exchange(questions, call)
        running: dict[Rpc, Attempt] = {}
        finished: SimpleQueue[Rpc] = SimpleQueue()
        try:
            while not exchange.finished:
                for attempt in exchange.due(time.monotonic()):
                    future = self._send(stubs[attempt.server], questions.build(attempt.index), call, attempt)
                    running[future] = attempt
                    future.add_done_callback(finished.put)
                waited_from = time.monotonic()
                try:
                    future = finished.get(timeout=exchange.wait_s(waited_from))
                except Empty:
                    continue
                finally:
                    call.waited(time.monotonic() - waited_from, in_flight=bool(running))
                attempt = running.pop(future)
                try:
                    response = future.result()
                except self._messages.RpcError as error:
                    self._failed(exchange, attempt, error, call)
                else:
                    exchange.answered(attempt, time.monotonic())
                    yield attempt, response
        finally:
            self._account(exchange, questions, call)
            for future in running:
                future.cancel()

    def _send(self, stub: Stub, request: Request, call: Call, attempt: Attempt) -> Rpc:
        if self._closed:
            raise RequestCancelledError("the client was closed during the call")
        try:
            return getattr(stub, request.method).future(**self._arguments(request, call, attempt))
        except ValueError as error:  # gRPC raises it when another thread closed the channel
            if not self._closed:
                raise
            raise RequestCancelledError("the client was closed during the call") from error

    def _open(self) -> list[Stub]:
        """Channels to all servers, made once."""
        stubs = self._stubs
        if stubs is None:
            with self._lock:
                if self._closed:
                    raise RequestCancelledError("the client was closed during the call")
                if self._stubs is None:
                    opened = [self._messages.stub(url, self._tls, self._compression) for url in self._urls]
                    self._channels = tuple(channel for channel, _ in opened)
                    # Last: from here on other threads go on without the lock.
                    self._stubs = [stub for _, stub in opened]
                stubs = self._stubs
        return stubs

    def _disinherit(self) -> None:
        self._inherited = (*self._inherited, *self._channels)
        self._channels, self._stubs = (), None
