"""The servers of one client: their health, their load by this client, and which one gets the next request."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from triton_rerank.errors import RerankError, ServerUnavailableError

_FIRST_REST_S = 0.2
_LONGEST_REST_S = 5.0

# Patience with one attempt while another server could answer instead: a multiple of the slowest recent answer, so
# that a busy server is not taken for a dead one.
_PATIENCE = 20.0
_LEAST_PATIENCE_S = 5.0
_FIRST_PATIENCE_S = 10.0  # before any answer has come
_PROBE_PATIENCE = 4.0  # with a server that failed last time
_LEAST_PROBE_PATIENCE_S = 1.0
_DECAY = 0.98  # of the slowest recent answer, with each answer

LONGEST_ATTEMPT_S = 300.0
"""Limit of one attempt in a call without a timeout: Triton never answers a request whose model process died with it."""


@dataclass(slots=True)
class _Queue:
    """The requests of this client that a server has at one priority; each has limits of its own there."""

    in_flight: int = 0
    room: float = math.inf
    """Requests that this client may have in flight there when it opens another call."""

    @property
    def is_open(self) -> bool:
        return self.in_flight < self.room or self.in_flight == 0


@dataclass(slots=True)
class _Health:
    failures: int = 0
    rests_until: float = 0.0
    answered_at: float = -math.inf
    error: RerankError | None = None
    """The failure after which the server rests."""
    queues: defaultdict[int | None, _Queue] = field(default_factory=lambda: defaultdict(_Queue))
    """By priority; None is the server's default."""


class Servers:
    """The addresses of one client, and the state of each server. Shared by threads.

    A server that did not answer rests, twice as long after each failure in a row. When its rest is over, one
    request tries it while the others still avoid it; an answer brings it back.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls: tuple[str, ...] = tuple(urls)
        self._health = [_Health() for _ in urls]
        self._next = 0
        self._slowest_s: float | None = None
        self._lock = threading.Lock()
        self.failed_at: float = -math.inf
        """When a server was last found unreachable."""

    def pick(
        self, now: float, tried: Collection[int] = (), *, opening: bool = False, priority: int | None = None
    ) -> int | None:
        """The server of the next request: healthy before resting, untried before tried, then round-robin.

        Args:
            now: Time on the monotonic clock.
            tried: Servers that the request was sent to before.
            opening: Whether the request opens a call: it goes only where a queue has room for it.
            priority: The call's priority, if it has one.

        Returns:
            The server's index; None if every server has as many requests of this client as its queue takes.
        """
        count = len(self.urls)
        with self._lock:
            turn = self._next
            open_to = [
                index for index, health in enumerate(self._health) if not opening or health.queues[priority].is_open
            ]
            if not open_to:
                return None
            chosen = min(
                open_to,
                key=lambda index: (now < self._health[index].rests_until, index in tried, (index - turn) % count),
            )
            health = self._health[chosen]
            if health.failures and now >= health.rests_until:
                _rest(health, now)  # until the answer is here, the others keep away
            health.queues[priority].in_flight += 1
            self._next = (chosen + 1) % count
            return chosen

    def patience_s(self, index: int, now: float, tried: Collection[int], *, quick: bool) -> float | None:
        """Seconds after which a request should try another server; None if there is no other healthy one.

        Args:
            index: The server that the request goes to.
            now: Time on the monotonic clock.
            tried: Servers that the request was sent to, this one included.
            quick: Whether any healthy server answers at once: a question about the configuration.
        """
        if not self.has_other(now, tried):
            return None
        slowest_s, failed = self._slowest_s, self._health[index].failures > 0
        if failed:
            return max(_LEAST_PROBE_PATIENCE_S, _PROBE_PATIENCE * (slowest_s or 0.0))
        if quick:
            return _LEAST_PATIENCE_S
        return _FIRST_PATIENCE_S if slowest_s is None else max(_LEAST_PATIENCE_S, _PATIENCE * slowest_s)

    def has_other(self, now: float, tried: Collection[int]) -> bool:
        """Whether a server that is not resting has not been tried."""
        return any(index not in tried and now >= health.rests_until for index, health in enumerate(self._health))

    @property
    def have_answered(self) -> bool:
        """Whether any server has answered this client."""
        return any(health.answered_at > -math.inf for health in self._health)

    def answered(self, index: int, now: float, took_s: float | None = None, *, priority: int | None = None) -> None:
        """Record an answer.

        Args:
            index: The server.
            now: Time on the monotonic clock.
            took_s: Seconds from request to scores; None for an answer that did not need the model.
            priority: As given to `pick`.
        """
        with self._lock:
            health = self._health[index]
            health.answered_at = now
            health.failures, health.rests_until, health.error = 0, 0.0, None
            if took_s is not None:
                self._slowest_s = max(took_s, _DECAY * (self._slowest_s or 0.0))
                queue = health.queues[priority]
                queue.room += 1 / queue.room

    def released(self, index: int, *, priority: int | None = None) -> None:
        """Record that a request to a server is no longer in flight."""
        with self._lock:
            self._health[index].queues[priority].in_flight -= 1

    def is_full(self, index: int, *, priority: int | None = None) -> bool:
        """Record that a queue was full; whether other requests of this client are part of the reason.

        Then this client keeps no more requests there than it has now, as TCP does.
        """
        with self._lock:
            queue = self._health[index].queues[priority]
            if queue.in_flight:
                queue.room = float(queue.in_flight)
            return queue.in_flight > 0

    def unreachable(self, index: int, now: float, error: RerankError | None = None) -> None:
        """Record that a server does not answer: it rests."""
        with self._lock:
            health = self._health[index]
            self.failed_at = now
            health.error = error
            if now >= health.rests_until:  # requests that fail together count as one failure
                _rest(health, now)

    def timed_out(self, index: int, sent_at: float, now: float, error: RerankError) -> bool:
        """Record that a request got no answer in its time; whether the server answered nothing else meanwhile.

        A server that answered other requests is slow and goes on; a silent one rests.
        """
        silent = self._health[index].answered_at < sent_at
        if silent:
            self.unreachable(index, now, error)
        return silent

    def summary(self, error: ServerUnavailableError) -> ServerUnavailableError:
        """`error`, or the errors of all servers if there are several and none answers."""
        errors = [health.error for health in self._health]
        if len(errors) == 1 or not all(errors):
            return error
        each = "; ".join(str(other) for other in errors)
        return type(error)(f"none of {len(errors)} servers answers: {each}")


def _rest(health: _Health, now: float) -> None:
    rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * float(2 ** min(health.failures, 10)))
    health.failures += 1
    health.rests_until = now + rest_s
