"""What each request of one call goes through: where it goes, when, and what a failure leads to.

No I/O and no clock: the clients send what `due` gives them and report what came of it. Parts that were
answered are kept; only those that failed are sent again.

A call of several requests opens with one of them, the cheapest, and sends the others when it is answered: a server
without room refuses the call by it, and has computed nothing of it. Once begun, a call goes before those that wait to
begin (see `set_priority` in _wire.py), so that calls are done one after the other and not all at once, late.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from triton_rerank.errors import RequestTimeoutError, RerankError, ServerOverloadedError, ServerUnavailableError
from triton_rerank.transport.retry import Deadline, RetryBudget, backoff_s
from triton_rerank.transport.servers import Servers

_MOST_RUNNING = 16
"""Requests of one call under way at once: 512 pairs keep any server busy."""

logger: logging.Logger = logging.getLogger("triton_rerank")


@dataclass(eq=False, slots=True)
class Attempt:
    """One request on its way, or waiting for its time."""

    index: int
    """Index of the request in the list that is exchanged."""
    due: float
    server: int = -1
    begun: bool = False
    """Whether it follows an answer of its call."""
    retries: int = 0
    tried: set[int] = field(default_factory=set)


class Exchange:
    """State of `count` requests under one deadline; the last one is the cheapest."""

    def __init__(
        self,
        count: int,
        *,
        servers: Servers,
        deadline: Deadline,
        budget: RetryBudget,
        max_retries: int,
        now: float,
        begun: bool = False,
        backoff: Callable[[int], float] = backoff_s,
    ) -> None:
        self._servers = servers
        self._deadline = deadline
        self._budget = budget
        self._max_retries = max_retries
        self._backoff = backoff
        self._waiting = [Attempt(index, due=now) for index in (count - 1, *range(count - 1))]
        self._count = count
        self._answered = 0
        self._running = 0
        self._begun = begun
        self._window = float(_MOST_RUNNING)
        self.num_sent: int = 0

    @property
    def finished(self) -> bool:
        """Whether every request was answered."""
        return self._answered == self._count

    def due(self, now: float) -> list[Attempt]:
        """The attempts to start now, each with its server.

        Raises:
            RequestTimeoutError: The deadline has passed.
        """
        if self._deadline.passed(now):
            raise self._timed_out()
        ready = [attempt for attempt in self._candidates if attempt.due <= now][: self._room]
        for attempt in ready:
            self._waiting.remove(attempt)
            attempt.begun = self._begun
            attempt.server = self._servers.pick(now, attempt.tried)
            attempt.tried.add(attempt.server)
        self._running += len(ready)
        self.num_sent += len(ready)
        return ready

    def wait_s(self, now: float) -> float | None:
        """Seconds until an attempt falls due; None while all are on their way, watched by gRPC."""
        if not self._waiting or not self._room:
            return None
        return max(0.0, min(attempt.due for attempt in self._candidates) - now)

    @property
    def _candidates(self) -> list[Attempt]:
        """What may be sent next: only the first until the call has begun."""
        return self._waiting if self._begun else self._waiting[:1]

    @property
    def _room(self) -> int:
        """How many more may run now: one until the call has begun."""
        return max(0, (int(self._window) if self._begun else 1) - self._running)

    def answered(self, attempt: Attempt) -> None:
        """Record an answer."""
        self._answered += 1
        self._running -= 1
        self._window = min(self._window + 1 / self._window, float(_MOST_RUNNING))
        self._begun = True
        self._servers.answered(attempt.server)
        self._budget.succeeded()

    def failed(self, attempt: Attempt, error: RerankError, now: float) -> None:
        """Record a failure and plan what follows.

        A request that found its server gone moves to another healthy one at once. Any other retry waits for
        its back-off, and is one of `max_retries` and of the budget; unless a full queue refused it while others of
        its own call are under way. Then no more than those run together, as in TCP: a call that is larger than a
        server's queue is not overload.

        Raises:
            RerankError: Nothing can follow: not a retryable kind, no retry left, or no time for one.
        """
        self._running -= 1
        if isinstance(error, RequestTimeoutError):
            raise self._timed_out() from error
        if not isinstance(error, ServerUnavailableError):
            raise error
        overloaded = isinstance(error, ServerOverloadedError)
        if overloaded:
            self._servers.answered(attempt.server)
            if self._running and self._max_retries and not self._deadline.passed(now):
                self._window = float(self._running)
                self._again(attempt, now + self._backoff(0), "the queue is full")
                return
        else:
            self._servers.unreachable(attempt.server, now)
            if self._servers.has_other(now, attempt.tried):
                self._again(attempt, now, "another server")
                return
        may_retry = self._budget.charge() and attempt.retries < self._max_retries
        due = now + self._backoff(attempt.retries)
        if self._deadline.passed(now):
            raise self._timed_out() from error
        if not may_retry or self._deadline.passed(due):
            raise error
        attempt.retries += 1
        self._again(attempt, due, "overloaded" if overloaded else "unreachable")

    def _again(self, attempt: Attempt, due: float, reason: str) -> None:
        attempt.due = due
        self._waiting.insert(0, attempt)
        logger.debug("request %d goes again: %s (retry %d)", attempt.index, reason, attempt.retries)

    def _timed_out(self) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"{self._answered} of {self._count} requests were answered within the timeout; "
            "give it more time, fewer documents, or the server more room"
        )
