"""Which server gets the next request: round-robin over those that answer."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_FIRST_REST_S = 0.2
_LONGEST_REST_S = 5.0


@dataclass(slots=True)
class _Health:
    failures: int = 0
    rests_until: float = 0.0


class Servers:
    """The addresses of one client and what is known of their health. Shared by threads.

    A server that was unreachable rests, twice as long after each failure in a row. When its rest is over, one
    request tries it while the others still avoid it; an answer brings it back.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls: tuple[str, ...] = tuple(urls)
        self._health = [_Health() for _ in urls]
        self._next = 0
        self._lock = threading.Lock()

    def pick(self, now: float, tried: Collection[int] = ()) -> int:
        """The server to ask next: healthy before resting, untried before tried, then by turns."""
        count = len(self.urls)
        if count == 1:
            return 0
        with self._lock:
            turn = self._next
            chosen = min(
                range(count),
                key=lambda index: (
                    now < self._health[index].rests_until,
                    index in tried,
                    (index - turn) % count,
                ),
            )
            health = self._health[chosen]
            if health.failures and now >= health.rests_until:
                _rest(health, now)  # until the answer is here, the others keep away
            self._next = (chosen + 1) % count
            return chosen

    def has_other(self, now: float, tried: Collection[int]) -> bool:
        """Whether a server that is not resting has not been tried."""
        return any(index not in tried and now >= health.rests_until for index, health in enumerate(self._health))

    def answered(self, index: int) -> None:
        """Record that a server is there."""
        health = self._health[index]
        if health.failures:
            with self._lock:
                health.failures, health.rests_until = 0, 0.0

    def unreachable(self, index: int, now: float) -> None:
        """Record that a server is not there: it rests."""
        with self._lock:
            health = self._health[index]
            if now >= health.rests_until:  # requests that fail together count as one failure
                _rest(health, now)


def _rest(health: _Health, now: float) -> None:
    rest_s = min(_LONGEST_REST_S, _FIRST_REST_S * float(2 ** min(health.failures, 10)))
    health.failures += 1
    health.rests_until = now + rest_s
