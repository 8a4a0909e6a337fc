"""One public call, and the requests that it sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton_rerank.transport.retry import Deadline
from triton_rerank.types import Timing

if TYPE_CHECKING:
    from triton_rerank.transport.messages import Request


@dataclass(frozen=True, slots=True)
class Questions:
    """The requests of one exchange, each built when it is sent, so that messages are held only while in flight."""

    count: int
    build: Callable[[int], Request]
    most_running: int = 1
    """How many may be in flight at once."""
    priority: int | None = None
    about_model: bool = False
    """Whether they concern the model's configuration: they do not count as requests of the call."""


class Call:
    """One public call while it runs: its deadline, and where its time goes."""

    def __init__(self, name: str, timeout: float | None, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.name = name
        self.started: float = time.monotonic()
        self.deadline: Deadline = Deadline.after(timeout, self.started)
        self.metadata = metadata
        self.server_s: float = 0.0
        self.backoff_s: float = 0.0
        self.num_requests = 0
        self.num_sent = 0
        self.begun = False
        """Whether a server has computed something for it."""
        self.refreshed = False
        """Whether it asked for the model's configuration again, after a refusal."""

    def waited(self, seconds: float, *, in_flight: bool) -> None:
        """Add time spent waiting: for a server if requests are in flight, else before a retry."""
        if in_flight:
            self.server_s += seconds
        else:
            self.backoff_s += seconds

    def timing(self) -> Timing:
        """The account so far."""
        total_s = time.monotonic() - self.started
        return Timing(
            total_s=total_s,
            server_s=self.server_s,
            client_s=total_s - self.server_s - self.backoff_s,
            num_requests=self.num_requests,
            num_retries=self.num_sent - self.num_requests,
            backoff_s=self.backoff_s,
        )
