"""When to retry: jittered backoff, a budget against amplified overload, one deadline for everything."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

_OVERLOAD_FIRST_S, _OVERLOAD_LAST_S = 0.1, 2.0
_GONE_FIRST_S, _GONE_LAST_S = 0.2, 5.0

GONE_WINDOW_S = 10.0
"""How long a request is retried if no server has ever answered this client: the address may be wrong."""

RESTART_WINDOW_S = 300.0
"""How long a request is retried, within its call's deadline, if a server has answered before: it may be restarting. A
restart takes seconds with a small model and minutes with a large one."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time, on a monotonic clock, at which a call must be over; None for never."""

    at: float | None

    @classmethod
    def after(cls, timeout: float | None, now: float) -> Deadline:
        """The deadline `timeout` seconds from `now`."""
        return cls(None if timeout is None else now + timeout)

    def remaining(self, now: float) -> float | None:
        """Seconds left, not below 0; None for no end."""
        return None if self.at is None else max(0.0, self.at - now)

    def passed(self, now: float) -> bool:
        """Whether no time is left."""
        return self.at is not None and now >= self.at


def backoff_s(retries: int, chance: float | None = None) -> float:
    """Seconds to wait before the retry that follows `retries` earlier ones of a request to an overloaded server.

    Full jitter: uniform between 0 and min(2, 0.1 * 2**retries) seconds ("Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015), so that callers that failed together come back apart.

    Args:
        retries: How many times the request has been sent again before.
        chance: A number from 0 to 1 in place of a random one.
    """
    cap_s = min(_OVERLOAD_LAST_S, _OVERLOAD_FIRST_S * float(2 ** min(retries, 30)))
    return cap_s * (random.random() if chance is None else chance)


def gone_backoff_s(retries: int, chance: float | None = None) -> float:
    """Seconds to wait before the retry that follows `retries` earlier ones of a request that no server answers.

    Equal jitter: between half and the whole of min(5, 0.2 * 2**retries) seconds.
    """
    cap_s = min(_GONE_LAST_S, _GONE_FIRST_S * float(2 ** min(retries, 30)))
    return cap_s * (0.5 + 0.5 * (random.random() if chance is None else chance))


class RetryBudget:
    """A token bucket that stops retries while most requests fail, as gRPC's retryThrottling does (gRFC A6).

    Each refusal for overload takes one token, each success returns a tenth; retries are allowed above half of the
    bucket. So a healthy client may retry 50 failures at once, and one whose every request fails adds 10 % of
    load at most.
    """

    def __init__(self, tokens: float = 100.0, returned: float = 0.1) -> None:
        self._most = self._tokens = tokens
        self._returned = returned
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Record a success."""
        if self._tokens < self._most:
            with self._lock:
                self._tokens = min(self._most, self._tokens + self._returned)

    def charge(self) -> bool:
        """Record a failure; whether it may be retried."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > self._most / 2
