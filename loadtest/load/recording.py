"""Recording of a load test: every call, Triton's statistics every second, and thresholds."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PERCENTILES = (50, 95, 99)  # of latencies, in output and reports


class Call(NamedTuple):
    """One finished call."""

    scenario: str
    start_s: float
    """Seconds since the epoch. In an open loop the due time, so that the delay of a busy client counts."""
    latency_ms: float
    num_documents: int
    error: str
    """Class of the error; empty if the call was answered."""

    def end_s(self) -> float:
        """Seconds since the epoch."""
        return self.start_s + self.latency_ms / 1e3


class ModelState(NamedTuple):
    """Triton's cumulative totals of one model."""

    model: str
    at_s: float
    requests: int
    failures: int
    pairs: int
    executions: int
    queue_ns: int
    compute_ns: int
    batches: dict[str, int]
    """Pairs in a batch -> number of such batches."""


@dataclass
class Recording:
    """One run."""

    options: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    states: list[ModelState] = field(default_factory=list)

    def latencies_ms(self, scenario: str | None = None) -> list[float]:
        """Latencies of answered calls, ascending."""
        return sorted(c.latency_ms for c in self.calls if not c.error and scenario in (None, c.scenario))

    def errors(self) -> Counter[str]:
        """Number of calls by class of error."""
        return Counter(call.error for call in self.calls if call.error)

    def failure_ratio(self) -> float:
        """Failed calls over all calls; 1 if there are no calls."""
        return sum(self.errors().values()) / len(self.calls) if self.calls else 1.0

    def duration_s(self) -> float:
        """Seconds from the first start to the last end of a call."""
        return max(call.end_s() for call in self.calls) - self.begin_s() if self.calls else 0.0

    def begin_s(self) -> float:
        """Start of the first call, in seconds since the epoch."""
        return min(call.start_s for call in self.calls)

    def pairs_per_s(self) -> float:
        """Documents of answered calls per second of the run."""
        done = sum(call.num_documents for call in self.calls if not call.error)
        return done / self.duration_s() if done else 0.0

    def totals(self) -> list[ModelState]:
        """Difference between the first and the last state of each model."""
        found = []
        for model in dict.fromkeys(state.model for state in self.states):
            own = [state for state in self.states if state.model == model]
            found.append(difference(own[0], own[-1]))
        return found

    def active_models(self) -> list[ModelState]:
        """The totals of the models that had requests."""
        return [total for total in self.totals() if total.requests or total.failures]

    def save(self, path: Path) -> None:
        """Write the run as JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read what `save` wrote."""
        record = json.loads(path.read_text(encoding="utf-8"))
        calls = [Call(*call) for call in record["calls"]]
        return cls(record["options"], calls, [ModelState(*state) for state in record["states"]])


def difference(first: ModelState, last: ModelState) -> ModelState:
    """Totals between two states; `at_s` is the last one's."""

    def grown(field: str) -> int:
        return int(getattr(last, field) - getattr(first, field))

    batches = {size: count - first.batches.get(size, 0) for size, count in last.batches.items()}
    return ModelState(
        model=last.model,
        at_s=last.at_s,
        requests=grown("requests"),
        failures=grown("failures"),
        pairs=grown("pairs"),
        executions=grown("executions"),
        queue_ns=grown("queue_ns"),
        compute_ns=grown("compute_ns"),
        batches={size: count for size, count in batches.items() if count},
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed; NaN of none."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def broken_thresholds(recording: Recording, max_p95_ms: float | None, max_failure_ratio: float) -> Iterable[str]:
    """A sentence for each threshold that the run exceeded."""
    if not recording.calls:
        yield "no call was finished"
        return
    p95_ms = percentile(recording.latencies_ms(), 95)
    if max_p95_ms is not None and not p95_ms <= max_p95_ms:
        yield f"p95 is {p95_ms:.0f} ms, the threshold {max_p95_ms:.0f} ms"
    if recording.failure_ratio() > max_failure_ratio:
        kinds = ", ".join(f"{count} {error}" for error, count in recording.errors().most_common())
        yield f"{recording.failure_ratio():.1%} of the calls failed ({kinds}), the threshold is {max_failure_ratio:.1%}"
