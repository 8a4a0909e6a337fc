"""One client that ranks the rows of a bulk job: several at a time, and again if servers are full or gone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from triton_rerank.bulk.rows import Columns, Failure, Ranked, Search, failure_of, ranked_of
from triton_rerank.client import RerankClient
from triton_rerank.errors import (
    ClientStateError,
    InferenceError,
    InvalidRequestError,
    RequestCancelledError,
    RequestTimeoutError,
    RerankError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnexpectedResponseError,
)
from triton_rerank.evaluation.rerank import check_versions
from triton_rerank.ranking.rerank import RerankOptions
from triton_rerank.ranking.validation import check_int, check_timeout
from triton_rerank.transport.retry import gone_backoff_s

ResultT = TypeVar("ResultT")

TIMEOUT_S = 600.0
"""Of a call: calls of higher priority may keep a bulk call waiting for long."""

PATIENCE_S = 1800.0

_OF_A_ROW = (
    InvalidRequestError,
    InferenceError,
    UnexpectedResponseError,
    RequestTimeoutError,
    ServerUnavailableError,
)
"""Errors of one row, after its call was repeated."""

_STRIKES = 3

logger: logging.Logger = logging.getLogger("triton_rerank")


class OutOfPatienceError(ServerUnavailableError):
    """No call was answered for too long: the job stops."""


class Retries:
    """Repeats the calls of a job's threads, with backoff, until `patience_s` have passed without an answer to any.

    A call that the server fails, or that ends without an answer while others are answered, is given up at the third
    time: its row, not the server, is the likely reason. A full server slows the threads down: their client opens no
    more calls there than it has room for.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._closed = threading.Event()
        self._answered_at = time.monotonic()
        self._failing_since: float | None = None

    def run(self, call: Callable[[], ResultT]) -> ResultT:
        """The result of `call`, or its error if repeating it is no use."""
        retries = strikes = 0
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                result = call()
            except (ServerUnavailableError, RequestTimeoutError, RequestCancelledError, InferenceError) as error:
                if not isinstance(error, ServerOverloadedError):
                    strikes += isinstance(error, InferenceError) or self._answered_at > began
                if strikes == _STRIKES:
                    raise
                self._failed(error)
            else:
                self._answered_at, self._failing_since = time.monotonic(), None
                return result
            self._closed.wait(gone_backoff_s(retries))
            retries += 1
        raise ClientStateError("the bulk job is closed")

    def close(self) -> None:
        """End all waiting: calls that would be repeated fail."""
        self._closed.set()

    def _failed(self, error: RerankError) -> None:
        if self._closed.is_set():
            raise error
        now, since = time.monotonic(), self._failing_since
        if since is None:
            self._failing_since = since = now
            logger.warning("%s: %s; repeating for up to %g s", type(error).__name__, error, self._patience_s)
        if now - since >= self._patience_s:
            raise OutOfPatienceError(f"no call was answered for {now - since:.0f} s: {error}") from error


@dataclass(frozen=True)
class RankerSettings:
    """Plain values that another process makes an equal `Ranker` of."""

    client: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `RerankClient`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `RerankClient.rerank`. Without a priority the calls have the last one that the server has."""
    columns: Columns = field(default_factory=Columns)
    raw: bool = False
    """Whether scores are logits."""
    concurrency: int = 8
    patience_s: float = PATIENCE_S
    versions: Mapping[str, str] = field(default_factory=dict)
    """Model -> the version of it that has to score all rows; any versions if it is empty."""

    def checked(self) -> RankerSettings:
        """These settings, or InvalidRequestError for one that cannot be used."""
        RerankOptions.check({name: value for name, value in self.options.items() if name != "timeout"})
        check_timeout(self.options.get("timeout"))
        check_int(self.concurrency, "concurrency", at_least=1, remedy="pass 1 or more")
        if check_timeout(self.patience_s) is None:
            raise InvalidRequestError("patience is None; pass seconds above 0")
        RerankClient(**self.client).close()
        return self


class Ranker:
    """Ranks searches with one client. Threads wait for the server, so that `concurrency` calls are in flight."""

    def __init__(self, settings: RankerSettings) -> None:
        self._settings = settings
        self._client = RerankClient(**{"timeout": TIMEOUT_S, **settings.client})
        self._retries = Retries(settings.patience_s)
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="bulk")
        self._options: dict[str, Any] | None = None
        self._versions = dict(settings.versions)

    def start(self) -> None:
        """Ask the server for its priorities, and have it accept the options with a pair."""
        info = self._retries.run(self._client.model_info)
        options = {**self._settings.options}
        if options.get("priority") is None and info.priority_levels is not None:
            options["priority"] = info.priority_levels
        self._retries.run(lambda: self._client.rerank("ready", ["ready"], **options))
        self._options = options

    def rank(
        self, searches: Sequence[Search | Failure], failed: Callable[[int, Failure], object]
    ) -> list[Ranked | Failure]:
        """The results of rows, in their order.

        Args:
            searches: The rows; failures come back as they are.
            failed: Called with the index of each row that failed; what it raises ends the work on the others.
        """
        for index, search in enumerate(searches):
            if isinstance(search, Failure):
                failed(index, search)
        if self._options is None and any(isinstance(search, Search) for search in searches):
            self.start()
        waiting = [
            self._pool.submit(self._one, search) if isinstance(search, Search) else search for search in searches
        ]
        outcomes: list[Ranked | Failure] = []
        try:
            for index, entry in enumerate(waiting):
                outcome = entry.result() if isinstance(entry, Future) else entry
                if isinstance(outcome, Failure) and isinstance(entry, Future):
                    failed(index, outcome)
                outcomes.append(outcome)
        except BaseException:
            for entry in waiting:
                if isinstance(entry, Future):
                    entry.cancel()
            raise
        return outcomes

    def close(self) -> None:
        """Close the connections; calls in flight end."""
        self._retries.close()
        self._client.close()
        self._pool.shutdown(cancel_futures=True)

    def _one(self, search: Search) -> Ranked | Failure:
        options, settings = self._options or {}, self._settings
        try:
            response = self._retries.run(lambda: self._client.rerank(search.query, search.documents, **options))
        except OutOfPatienceError:
            raise
        except _OF_A_ROW as error:
            return failure_of(settings.columns, error)
        if self._versions:
            check_versions(response.stages, self._versions)
        return ranked_of(search, response, raw=settings.raw)
