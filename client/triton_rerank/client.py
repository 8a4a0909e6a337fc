"""The client for threads: what `BaseClient` decides, said over blocking gRPC."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from triton_rerank.base import READY_PAIR, BaseClient, Call, Job
from triton_rerank.errors import RequestCancelledError, RerankError
from triton_rerank.ranking.score import ScoreJob
from triton_rerank.ranking.validation import check_int, check_many
from triton_rerank.transport.exchange import Attempt
from triton_rerank.transport.untyped import Channel, Message, Rpc, Stub
from triton_rerank.types import CallOptions, DocumentT, ModelInfo, RerankResponse

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

if TYPE_CHECKING:
    from triton_rerank.transport.messages import Request


class RerankClient(BaseClient):
    """Reranks documents with a cross-encoder, or by late interaction, that Triton serves. Share one among threads.

    Connections open with the first call, so a client may be made before a process forks, but not used before:
    gRPC does not survive a fork.

    Args:
        url: "host:port" of Triton's gRPC endpoint; a list of them, used by turns and past those that are
            down; or "dns:///name:port", whose addresses gRPC uses by turns.
        model: Name of the ensemble in Triton.
        timeout: Seconds for a whole call where the call says nothing; None for no end.
        max_retries: How often a request may be sent again to a server that is overloaded or gone. Moving to
            another healthy server is not counted.
        pairs_per_request: Pairs in one request at most; the server's max_batch_size if that is lower.
        tls: True for the system's roots, or a `TLS` with certificates.
        metadata: gRPC metadata of every request, such as {"authorization": "Bearer ..."}, or a function that
            returns it. Never logged.
        compression: Compression of messages to the server: "gzip", "deflate", or none.
        request_size: Deprecated name of `pairs_per_request`.

    Raises:
        InvalidRequestError: An argument is unusable.
    """

    _stubs: list[Stub] | None = None
    _channels: tuple[Channel, ...] = ()
    _pid = 0

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
                - query_max_length: Tokens of the query after truncation; three quarters of `max_length` if None.
                - min_relevance_score: Drop results below it, before `top_n` is applied.
                - long_documents: "truncate" (the default) reads a document up to `max_length`. "chunk" splits it into
                  overlapping parts until none is truncated; the best part determines the score and is
                  described in `RerankResult.chunk`.
                - text_from: How fields become text: a template such as "{title}: {price:.2f} EUR", a list of field
                  names whose values are joined by newlines, or a function of the document.
                - priority: Order in which waiting requests are served, 1 first. The default is the server's, 2 as
                  shipped; bulk jobs use 3.
                - timeout: Seconds for the whole call, retries included; the client's if None.

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
            if not job.empty:
                self._learn(call, info=job.needs_info)
                self._run(job, call)
            return self._response(job, call)

    def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[RerankResponse[DocumentT]]:
        """Rerank the documents of many queries, several at a time.

        Args:
            searches: (query, documents) pairs.
            concurrency: Queries under way at once.
            progress: Called after each with the numbers done and total.
            **options: The options of `rerank`; `timeout` is for each query's call.

        Returns:
            The responses in the order of `searches`.

        Raises:
            RerankError: As `rerank`; the first failure ends the rest.
        """
        todo = check_many(searches, "searches", "(query, documents) pairs", limit=None)
        workers = check_int(concurrency, "concurrency", at_least=1, remedy="pass 1 or more")

        def one(search: tuple[str, Iterable[DocumentT]]) -> RerankResponse[DocumentT]:
            query, documents = search
            return self.rerank(query, documents, **options)

        with ExitStack() as stack:
            pool = ThreadPoolExecutor(workers, thread_name_prefix="rerank_many")
            stack.callback(pool.shutdown, cancel_futures=True)
            responses = []
            for response in pool.map(one, todo):
                responses.append(response)
                if progress is not None:
                    progress(len(responses), len(todo))
            return responses

    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        normalize: bool = True,
        max_length: int | None = None,
        query_max_length: int | None = None,
        priority: int | None = None,
        timeout: float | None = None,
    ) -> list[float]:
        """Score (query, document) pairs.

        Args:
            pairs: Any number of pairs of texts; queries may differ.
            normalize: True for relevance scores, 0 to 1; False for raw logits.
            max_length: See `rerank`.
            query_max_length: See `rerank`.
            priority: See `rerank`.
            timeout: Seconds for the whole call.

        Returns:
            One number for each pair, in the order of `pairs`.

        Raises:
            RerankError: As `rerank`.
        """
        with self._call("score", timeout) as call:
            job = ScoreJob(pairs, max_length, query_max_length, priority)
            if job.logits:
                self._learn(call, info=job.needs_info)
                self._run(job, call)
            return self._scores_of(job, normalize)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """What the server says of the model: checkpoint, precision, limits. Asked once and kept.

        Raises:
            RerankError: As `rerank`.
        """
        with self._call("model_info", timeout) as call:
            self._learn(call, info=True)
            return self._known_info()

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether a real pair is scored: the server is up, the model loaded, an answer comes in time."""
        try:
            self.score([READY_PAIR], timeout=timeout)
        except RerankError:
            return False
        return True

    def close(self) -> None:
        """Close the connections. Calls under way in other threads end with RequestCancelledError."""
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
        self._check_priority(job)
        while parts := job.next_round(self._limits()):
            for attempt, response in self._ask(self._requests(job, parts), call):
                job.take(parts[attempt.index], self._scores(response, parts[attempt.index], attempt))
                call.begun = True

    def _learn(self, call: Call, *, info: bool = False) -> None:
        """Ask the server, once in the client's life, for its limits."""
        if self._config is None:
            self._config = self._ask_one(self._messages.config_request(self.model), call).config
        if info and self._info is None:
            steps = self._messages.steps_of(self._config)
            configs = [self._ask_one(self._messages.config_request(step), call).config for step in steps]
            if encoder := self._messages.encoder_of(configs[-1]):
                configs.append(self._ask_one(self._messages.config_request(encoder), call).config)
            about = self._ask_one(self._info_request(steps[0]), call)
            self._info = self._model_info(about, configs)

    def _ask_one(self, request: Request, call: Call) -> Message:
        return next(response for _, response in self._ask([request], call))

    def _ask(self, requests: Sequence[Request], call: Call) -> Iterator[tuple[Attempt, Message]]:
        """Send requests together and yield each with its answer as it comes. The end cancels the rest."""
        stubs = self._open()
        exchange = self._exchange(requests, call)
        running: dict[Rpc, Attempt] = {}
        finished: SimpleQueue[Rpc] = SimpleQueue()
        try:
            while not exchange.finished:
                for attempt in exchange.due(time.monotonic()):
                    future = self._send(stubs[attempt.server], requests[attempt.index], call, attempt)
                    running[future] = attempt
                    future.add_done_callback(finished.put)
                waited_from = time.monotonic()
                try:
                    future = finished.get(timeout=exchange.wait_s(waited_from))
                except Empty:
                    continue
                finally:
                    call.server_s += time.monotonic() - waited_from
                attempt = running.pop(future)
                try:
                    response = future.result()
                except self._messages.RpcError as error:
                    self._failed(exchange, attempt, error)
                else:
                    exchange.answered(attempt)
                    yield attempt, response
        finally:
            call.num_sent += exchange.num_sent
            for future in running:
                future.cancel()

    def _send(self, stub: Stub, request: Request, call: Call, attempt: Attempt) -> Rpc:
        try:
            return getattr(stub, request.method).future(**self._arguments(request, call, begun=attempt.begun))
        except ValueError as error:  # gRPC's word for a channel that another thread has closed
            raise RequestCancelledError("the client was closed during the call") from error

    def _open(self) -> list[Stub]:
        """Channels to all servers, made once in this process."""
        stubs = self._stubs
        if stubs is None:
            with self._lock:
                if self._closed:
                    raise RequestCancelledError("the client was closed during the call")
                if self._stubs is None:
                    opened = [self._messages.stub(url, self._tls, self._compression) for url in self._servers.urls]
                    self._channels = tuple(channel for channel, _ in opened)
                    self._pid = os.getpid()
                    # Last: from here on other threads go on without the lock.
                    self._stubs = [stub for _, stub in opened]
                stubs = self._stubs
        if self._pid != os.getpid():
            raise RuntimeError("the client was used before this process was forked; make one in the child")
        return stubs
