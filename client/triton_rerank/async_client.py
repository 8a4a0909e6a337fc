"""The client for asyncio: the I/O of `BaseClient` over grpc.aio."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, overload

from triton_rerank.base import BaseClient, logger, ready_pair
from triton_rerank.errors import (
    ClientStateError,
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


_opened_in: int | None = None
"""The process that opened a channel: grpc.aio has one poller thread in a process, which a forked child lacks."""


class AsyncRerankClient(BaseClient):
    """`RerankClient` for asyncio: the same arguments, methods and errors, awaited.

    Use one in one event loop. Connections open with the first call, in the loop that runs then; after that
    loop is closed, they open anew in the next. Cancelling a call cancels its requests on the server. gRPC for asyncio
    does not work in a child that was forked after a call.
    """

    _stubs: list[Stub] | None = None
    _channels: tuple[Channel, ...] = ()
    _inherited: tuple[Channel, ...] = ()
    _loop: asyncio.AbstractEventLoop | None = None

    async def rerank(
        self,
        query: str,
        documents: Iterable[DocumentT],
        **options: Unpack[CallOptions],
    ) -> RerankResponse[DocumentT]:
        """Order `documents` by relevance to `query`: see `RerankClient.rerank`."""
        with self._call("rerank", options.pop("timeout", None)) as call:
            job = self._rerank_job(query, documents, options)
            for stage in job.stages():
                with self._stage(stage, call):
                    await self._learn(call, info=stage.job.needs_info)
                    await self._run(stage.job, call)
            return self._response(job, call)

    @overload
    async def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        return_exceptions: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> list[RerankResponse[DocumentT]]: ...

    @overload
    async def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        return_exceptions: bool,
        **options: Unpack[CallOptions],
    ) -> list[RerankResponse[DocumentT] | RerankError]: ...

    async def rerank_many(
        self,
        searches: Iterable[tuple[str, Iterable[DocumentT]]],
        *,
        concurrency: int = 8,
        progress: Callable[[int, int], None] | None = None,
        return_exceptions: bool = False,
        **options: Unpack[CallOptions],
    ) -> Sequence[RerankResponse[DocumentT] | RerankError]:
        """Rerank the documents of many queries, several at a time: see `RerankClient.rerank_many`."""
        todo = check_searches(searches)
        workers = check_int(concurrency, "concurrency", at_least=1, remedy="pass 1 or more")
        outcomes: dict[int, RerankResponse[DocumentT] | RerankError] = {}
        waiting = iter(enumerate(todo))

        async def work() -> None:
            for index, (query, documents) in waiting:
                try:
                    outcomes[index] = await self.rerank(query, documents, **options)
                except RerankError as error:
                    named = name_search(error, index)
                    if not return_exceptions:
                        raise named from error
                    outcomes[index] = named
                if progress is not None:
                    progress(len(outcomes), len(todo))

        tasks = [asyncio.ensure_future(work()) for _ in range(min(workers, len(todo)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [outcomes[index] for index in range(len(todo))]

    async def score(
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
        """Score (query, document) pairs in their order: see `RerankClient.score`."""
        with self._call("score", timeout) as call:
            job = ScoreJob(pairs, max_length, query_max_length, priority, instruction)
            if job.logits:
                await self._learn(call, info=job.needs_info)
                await self._run(job, call)
            return self._scores_of(job, normalize, call)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """The server's description of the model: see `RerankClient.model_info`."""
        with self._call("model_info", timeout) as call:
            call.target.served.outdate()
            await self._learn(call, info=True)
            return call.target.served.info

    async def is_ready(self, *, timeout: float | None = None) -> bool:
        """Whether a real pair is scored: see `RerankClient.is_ready`."""
        with self._call("is_ready", timeout) as call:
            try:
                job = ScoreJob([ready_pair()])
                await self._learn(call)
                await self._run(job, call)
            except RerankError as error:
                logger.debug("not ready: %s", error)
                return False
            return True

    async def close(self) -> None:
        """Close the connections. Calls in flight in other tasks end with RequestCancelledError."""
        self._closed = True
        channels, self._channels, self._stubs = self._channels, (), None
        if self._loop is asyncio.get_running_loop():
            for channel in channels:
                await channel.close()

    async def __aenter__(self) -> AsyncRerankClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, job: Job, call: Call) -> None:
        """Send a job's rounds until it has no more rows to score."""
        call.target.served.check(job.parameters)
        while parts := job.next_round(call.target.served.limits(self._pairs_per_request)):
            while parts:
                left = dict(enumerate(parts))
                try:
                    async with aclosing(self._ask(self._questions(job, parts, call), call)) as answers:
                        async for attempt, response in answers:
                            part = left.pop(attempt.index)
                            job.take(part, self._scores(response, part, attempt, call))
                except OtherVersionError as error:
                    self._start_over(job, call, error)
                    left = {}
                except InvalidRequestError as error:
                    if call.refreshed or not call.target.served.refused(error):
                        raise
                    call.refreshed = True
                    await self._learn(call)
                parts = self._cut_again(left.values(), call)

    async def _learn(self, call: Call, *, info: bool = False) -> None:
        """Ask the server for what is not known of the model: configurations, and its description if that is needed."""
        served, servers = call.target.served, call.target.servers
        if served.must_ask(servers.failed_at):
            try:
                served.adopt((await self._ask_one(self._messages.config_request(call.target.model), call)).config)
            except ModelNotFoundError as error:
                index = None
                with suppress(RerankError):  # the list of models may be closed to callers
                    index = await self._ask_one(self._messages.index_request(), call)
                raise name_models(error, index) from error.__cause__
        if served.must_ask_steps:
            steps = self._messages.steps_of(served.config)
            configs = [(await self._ask_one(self._messages.config_request(step), call)).config for step in steps]
            if configs and (encoder := self._messages.encoder_of(configs[-1])):
                configs.append((await self._ask_one(self._messages.config_request(encoder), call)).config)
            served.adopt_steps(configs)
        if info and served.must_describe:
            tokenizer = self._messages.tokenizer_of(served.config)
            served.describe(await self._ask_one(self._info_request(tokenizer), call))

    async def _ask_one(self, request: Request, call: Call) -> Message:
        questions = Questions(1, lambda _: request, about_model=True)
        async with aclosing(self._ask(questions, call)) as answers:
            _, response = await anext(answers)
            return response

    async def _ask(self, questions: Questions, call: Call) -> AsyncGenerator[tuple[Attempt, Message], None]:
        """Send requests together and yield each with its answer as it comes. The end cancels the rest."""
        stubs = self._open()
        exchange = self._exchange(questions, call)
        running: dict[Rpc, Attempt] = {}
        finished: asyncio.Queue[Rpc] = asyncio.Queue()
        try:
            while not exchange.finished:
                for attempt in exchange.due(time.monotonic()):
                    rpc = self._send(stubs[attempt.server], questions.build(attempt.index), call, attempt)
                    running[rpc] = attempt
                    rpc.add_done_callback(finished.put_nowait)
                waited_from = time.monotonic()
                try:
                    rpc = await _next(finished, exchange.wait_s(waited_from))
                except asyncio.TimeoutError:
                    continue
                finally:
                    call.waited(time.monotonic() - waited_from, in_flight=bool(running))
                attempt = running.pop(rpc)
                try:
                    response = await rpc
                except self._messages.RpcError as error:
                    self._failed(exchange, attempt, error, call)
                except asyncio.CancelledError as error:
                    if not self._closed:
                        raise
                    raise RequestCancelledError("the client was closed during the call") from error
                else:
                    exchange.answered(attempt, time.monotonic())
                    yield attempt, response
        finally:
            self._account(exchange, questions, call)
            for rpc in running:
                rpc.cancel()

    def _send(self, stub: Stub, request: Request, call: Call, attempt: Attempt) -> Rpc:
        if self._closed:
            raise RequestCancelledError("the client was closed during the call")
        try:
            return getattr(stub, request.method)(**self._arguments(request, call, attempt))
        except self._messages.UsageError as error:
            raise RequestCancelledError("the client was closed during the call") from error

    def _open(self) -> list[Stub]:
        """Channels to all servers, made once in this event loop."""
        global _opened_in
        loop = asyncio.get_running_loop()
        if self._stubs is None or self._loop is not loop:
            if self._closed:
                raise RequestCancelledError("the client was closed during the call")
            if _opened_in not in (None, os.getpid()):
                raise ClientStateError(
                    "gRPC for asyncio does not survive a fork: start the process with spawn, or use RerankClient in it"
                )
            if self._loop is not None and not self._loop.is_closed():
                raise ClientStateError("the client belongs to another event loop that is still open; make one in each")
            opened = [self._messages.async_stub(url, self._tls, self._compression) for url in self._urls]
            self._channels = tuple(channel for channel, _ in opened)
            self._stubs = [stub for _, stub in opened]
            self._loop, _opened_in = loop, os.getpid()
        return self._stubs

    def _disinherit(self) -> None:
        self._inherited = (*self._inherited, *self._channels)
        self._channels, self._stubs, self._loop = (), None, None


async def _next(finished: asyncio.Queue[Rpc], wait_s: float | None) -> Rpc:
    if wait_s is None:
        return await finished.get()
    return await asyncio.wait_for(finished.get(), wait_s)
