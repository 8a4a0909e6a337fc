"""What the computations of `rerank` and `score` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from triton_rerank.ranking.batching import Limits, Part, Scores


class Job(Protocol):
    """The computation of a call: rounds of rows, until there are none."""

    @property
    def parameters(self) -> Mapping[str, int | str]:
        """Request parameters of every request."""
        ...

    def next_round(self, limits: Limits) -> list[Part]:
        """The requests to send next; none when the call is done."""
        ...

    def restart(self) -> None:
        """Forget all scores: the next round is the first one again."""
        ...

    def take(self, part: Part, scores: Scores) -> None:
        """Store the scores of one request."""
        ...
