"""The course of one call's requests: which server each goes to, when, and what a failure leads to.

No I/O and no clock: the clients send what `due` returns and report the outcome. Answered requests are kept; only
failed ones are sent again.

A call of several requests opens with one of them, the cheapest, and sends the others when it is answered: an overloaded
server refuses the call by it, before it computes anything for the call. Requests of a call that has begun are served
before calls that wait to begin (see `messages.set_priority`), so the server finishes calls one after another.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from triton_rerank.errors import (
    InferenceError,
    OtherVersionError,
    RequestTimeoutError,
    RerankError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from triton_rerank.transport.retry import (
    GONE_WINDOW_S,
    RESTART_WINDOW_S,
    Deadline,
    RetryBudget,
    backoff_s,
    gone_backoff_s,
)
from triton_rerank.transport.servers import LONGEST_ATTEMPT_S, Servers

_ROOM_POLL_S = 0.1
"""How often, at most, a call looks again for room in a queue that this client has filled."""

_MOST_OTHER_VERSIONS = 20
"""How often a request may meet another version of the model than its call's. An address may stand for many servers: if
a fifth of them have that version, 20 attempts find one in 99 % of the cases. A refusal takes 0.3 to 2 ms."""

logger: logging.Logger = logging.getLogger("triton_rerank")


@dataclass(eq=False, slots=True)
class Attempt:
    """One request in flight, or waiting to be sent."""

    index: int
    """Index of the request among those of the exchange."""
    due: float
    server: int = -1
    sent_at: float = 0.0
    limit_s: float | None = None
    """Seconds for this attempt; None for the rest of the call's time."""
    begun: bool = False
    """Whether it follows an answer of its call."""
    retries: int = 0
    """Retries after a refusal for overload."""
    gone_retries: int = 0
    other_versions: int = 0
    """Servers that had another version of the model than its call's."""
    gone_since: float | None = None
    """When no server answered it for the first time."""
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
        most_running: int,
        priority: int | None = None,
        begun: bool = False,
        quick: bool = False,
        backoff: Callable[[int], float] = backoff_s,
        gone_backoff: Callable[[int], float] = gone_backoff_s,
    ) -> None:
        self._servers = servers
        self._deadline = deadline
        self._budget = budget
        self._max_retries = max_retries
        self._priority = priority
        self._quick = quick
        self._backoff = backoff
        self._gone_backoff = gone_backoff
        self._count = count
        self._fresh = 0
        """Requests that were taken for their first attempt: the last one, then from index 0 on."""
        self._again: list[Attempt] = []
        self._in_flight: set[Attempt] = set()
        self._answered = 0
        self._begun = begun
        self._most_running = float(most_running)
        self._window = self._most_running
        self._silent: set[int] = set()
        self._gone_error: ServerUnavailableError | None = None
        """Why the last failed request found no server, until one is answered."""
        self.num_sent: int = 0

    @property
    def finished(self) -> bool:
        """Whether every request was answered."""
        return self._answered == self._count

    def due(self, now: float) -> list[Attempt]:
        """The attempts to start now, each with its server and its time limit.

        Raises:
            RequestTimeoutError: The deadline has passed.
            ServerUnavailableError: It has passed while no server could be reached.
        """
        if self._deadline.passed(now):
            raise self._timed_out()
        ready: list[Attempt] = []
        while self._room > 0 and (attempt := self._take(now)) is not None:
            server = self._servers.pick(now, attempt.tried, opening=not self._begun, priority=self._priority)
            if server is None:
                attempt.due = now + _ROOM_POLL_S * random.uniform(0.5, 1.0)
                self._again.append(attempt)
                break
            self._start(attempt, server, now)
            ready.append(attempt)
        return ready

    def wait_s(self, now: float) -> float | None:
        """Seconds until an attempt falls due; None while all are in flight, watched by gRPC."""
        if self._room <= 0:
            return None
        if self._has_fresh:
            return 0.0
        return max(0.0, min(attempt.due for attempt in self._again) - now) if self._again else None

    def answered(self, attempt: Attempt, now: float) -> None:
        """Record an answer."""
        self._finish(attempt)
        self._answered += 1
        self._window = min(self._window + 1 / self._window, self._most_running)
        self._begun = True
        self._gone_error = None
        took_s = None if self._quick else now - attempt.sent_at
        self._servers.answered(attempt.server, now, took_s, priority=self._priority)
        self._budget.succeeded()

    def failed(self, attempt: Attempt, error: RerankError, now: float) -> None:
        """Record a failure and plan what follows.

        A request whose server is gone, or has too little memory for it, moves to another healthy server at once. If all
        are gone, it is retried with backoff until the deadline, or for `GONE_WINDOW_S` if no server has ever answered.
        A retry after overload is one of `max_retries` and is charged to the budget; with none left, the request still
        goes once to each other healthy server. If other requests of this client fill the queue, then no more than those
        are sent, and the request waits its turn.

        Raises:
            RerankError: The call fails: an error that is not retryable, no retry left, or no time for one.
        """
        self._finish(attempt)
        if isinstance(error, RequestTimeoutError):
            self._attempt_timed_out(attempt, error, now)
        elif isinstance(error, ServerOverloadedError):
            self._overloaded(attempt, error, now)
        elif isinstance(error, OtherVersionError):
            self._other_version(attempt, error, now)
        elif isinstance(error, ServerUnavailableError):
            self._servers.unreachable(attempt.server, now, error)
            self._gone_error = error
            self._gone(attempt, error, now)
        elif isinstance(error, InferenceError) and error.out_of_memory and self._servers.has_other(now, attempt.tried):
            self._servers.answered(attempt.server, now)
            self._retry(attempt, now, "another server")
        else:
            raise error

    def abandon(self) -> None:
        """Release what is still in flight: the call is over."""
        for attempt in list(self._in_flight):
            self._finish(attempt)

    @property
    def _has_fresh(self) -> bool:
        """Whether a request may be sent for the first time: only one until the call has begun."""
        return self._fresh < self._count and (self._begun or self._fresh == 0)

    @property
    def _room(self) -> int:
        """How many more may be in flight now: one until the call has begun."""
        return (int(self._window) if self._begun else 1) - len(self._in_flight)

    def _take(self, now: float) -> Attempt | None:
        for position, attempt in enumerate(self._again):
            if attempt.due <= now:
                return self._again.pop(position)
        if not self._has_fresh:
            return None
        index = self._fresh - 1 if self._fresh else self._count - 1
        self._fresh += 1
        return Attempt(index, due=now)

    def _start(self, attempt: Attempt, server: int, now: float) -> None:
        attempt.server, attempt.sent_at, attempt.begun = server, now, self._begun
        attempt.tried.add(server)
        remaining_s = self._deadline.remaining(now)
        patience_s = self._servers.patience_s(server, now, attempt.tried, quick=self._quick)
        if patience_s is None:
            attempt.limit_s = LONGEST_ATTEMPT_S if remaining_s is None else None
        else:
            attempt.limit_s = patience_s if remaining_s is None else min(patience_s, remaining_s / 2)
        self._in_flight.add(attempt)
        self.num_sent += 1

    def _finish(self, attempt: Attempt) -> None:
        self._in_flight.discard(attempt)
        self._servers.released(attempt.server, priority=self._priority)

    def _attempt_timed_out(self, attempt: Attempt, error: RequestTimeoutError, now: float) -> None:
        waited_s = now - attempt.sent_at
        url = self._servers.urls[attempt.server]
        silent = ServerUnavailableError(f"{url}: no answer within {waited_s:.3g} s")
        if self._servers.timed_out(attempt.server, attempt.sent_at, now, silent):
            self._silent.add(attempt.server)
        if attempt.limit_s is None or self._deadline.passed(now):
            raise self._timed_out() from error
        self._gone(attempt, silent, now)

    def _overloaded(self, attempt: Attempt, error: ServerOverloadedError, now: float) -> None:
        self._servers.answered(attempt.server, now)
        if self._deadline.passed(now):
            raise self._timed_out() from error
        if self._max_retries and self._in_flight:
            self._window = float(len(self._in_flight))
            self._retry(attempt, now + self._backoff(0), "the queue is full")
            return
        if self._max_retries and self._servers.is_full(attempt.server, priority=self._priority):
            self._retry(attempt, now + _ROOM_POLL_S * random.uniform(0.5, 1.0), "the queue is full")
            return
        may_retry = self._budget.charge()
        if may_retry and attempt.retries >= self._max_retries and self._servers.has_other(now, attempt.tried):
            self._retry(attempt, now, "another server")
            return
        may_retry &= attempt.retries < self._max_retries
        due = now + self._backoff(attempt.retries)
        if not may_retry or self._deadline.passed(due):
            raise error
        attempt.retries += 1
        self._retry(attempt, due, "overloaded")

    def _other_version(self, attempt: Attempt, error: OtherVersionError, now: float) -> None:
        self._servers.answered(attempt.server, now)
        attempt.other_versions += 1
        if self._deadline.passed(now):
            raise self._timed_out() from error
        if attempt.other_versions == _MOST_OTHER_VERSIONS:
            raise error
        if not self._servers.has_other(now, attempt.tried):
            attempt.tried.clear()
        self._retry(attempt, now, "the server has another version of the model")

    def _gone(self, attempt: Attempt, error: ServerUnavailableError, now: float) -> None:
        if self._servers.has_other(now, attempt.tried):
            self._retry(attempt, now, "another server")
            return
        if self._deadline.passed(now):
            raise self._timed_out() from error
        if attempt.gone_since is None:
            attempt.gone_since = now
        end = attempt.gone_since + (RESTART_WINDOW_S if self._servers.have_answered else GONE_WINDOW_S)
        due = min(now + self._gone_backoff(attempt.gone_retries), end)
        if self._max_retries == 0 or now >= end or self._deadline.passed(due):
            raise self._servers.summary(error)
        attempt.gone_retries += 1
        attempt.tried.clear()
        self._retry(attempt, due, "unreachable")

    def _retry(self, attempt: Attempt, due: float, reason: str) -> None:
        attempt.due = due
        self._again.insert(0, attempt)
        retries = attempt.retries + attempt.gone_retries
        logger.debug("request %d goes again: %s (retry %d)", attempt.index, reason, retries)

    def _timed_out(self) -> RerankError:
        if self._gone_error is not None and not self._in_flight:
            return self._servers.summary(self._gone_error)
        done = f"{self._answered} of {self._count} requests were answered within the timeout"
        if self._silent and not self._answered:
            urls = ", ".join(self._servers.urls[server] for server in sorted(self._silent))
            return RequestTimeoutError(
                f"{done}, and {urls} answered no request meanwhile; pass a longer timeout, or check that the server "
                "and its model processes are alive"
            )
        return RequestTimeoutError(f"{done}; pass a longer timeout or fewer documents, or add servers")
