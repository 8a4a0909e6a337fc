"""One public call, and the requests that it sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from triton_rerank.transport.model import ServedModel
from triton_rerank.transport.retry import Deadline, RetryBudget
from triton_rerank.transport.servers import Servers
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


class Target:
    """One model on the servers of a client, and what the client has learned of it. Shared by threads.

    Each model has a queue and times of its own, so a client with two models keeps the state of each apart.
    """

    def __init__(self, model: str, urls: Sequence[str]) -> None:
        self.model = model
        self.served: ServedModel = ServedModel(model)
        self.servers: Servers = Servers(urls)
        self.budget: RetryBudget = RetryBudget()


class Call:
    """One public call while it runs: its deadline, the model that it asks now, and where its time goes."""

    def __init__(
        self, name: str, timeout: float | None, metadata: tuple[tuple[str, str | bytes], ...], target: Target
    ) -> None:
        self.name = name
        self.target: Target = target
        self.started: float = time.monotonic()
        self._end: Deadline = Deadline.after(timeout, self.started)
        self.deadline: Deadline = self._end
        """Of the current stage; not beyond that of the call."""
        self.metadata = metadata
        self.server_s: float = 0.0
        self.backoff_s: float = 0.0
        self.num_requests = 0
        self.num_sent = 0
        self.num_starts = 0
        """How often a version of the model has answered some requests of a stage, and was then gone."""
        self.begun: bool = False
        """Whether a server has computed something for it."""
        self.refreshed: bool = False
        """Whether it asked for the model's configuration again, after a refusal."""
        self.version: str = ""
        """Version of the model that answered the stage's first request, and so must answer the others; "" before it."""
        self._before: Timing = self.timing()

    def begin_stage(self, target: Target, *, share: float = 1.0) -> None:
        """Go on with a model.

        Args:
            target: The model.
            share: The share of the remaining time that the stage may take.
        """
        self.target = target
        now = time.monotonic()
        remaining_s = self._end.remaining(now)
        self.deadline = self._end if remaining_s is None or share == 1 else Deadline.after(remaining_s * share, now)
        self.start_over()
        self.refreshed = False
        self._before = self.timing()

    def start_over(self) -> None:
        """Let the stage open again with one request, which any version of the model may answer."""
        self.begun = False  # the model's queue has not admitted the call yet
        self.version = ""

    def stage_timing(self) -> Timing:
        """The account since the current stage began."""
        pairs = zip(astuple(self._before), astuple(self.timing()), strict=True)
        return Timing(*(after - before for before, after in pairs))

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
