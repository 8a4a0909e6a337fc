"""What a load test writes down: every call, Triton's statistics every second, and whether thresholds hold."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Call(NamedTuple):
    """One finished call."""

    scenario: str
    start_s: float
    """Since the epoch. In an open loop the moment the call was due, so that waiting for a slow client counts."""
    latency_ms: float
    num_documents: int
    error: str
    """Class of the error, empty for an answer."""


class ModelState(NamedTuple):
    """Triton's running totals for one model."""

    model: str
    at_s: float
    requests: int
    failures: int
    pairs: int
    executions: int
    queue_ns: int
    compute_ns: int
    batches: dict[str, int]
    """Pairs in a batch -> how many such batches were run."""


@dataclass
class Recording:
    """One run."""

    options: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    states: list[ModelState] = field(default_factory=list)

    def latencies_ms(self, scenario: str | None = None) -> list[float]:
        """Of the answered calls, ascending."""
        return sorted(c.latency_ms for c in self.calls if not c.error and scenario in (None, c.scenario))

    def errors(self) -> Counter[str]:
        """How many calls ended in each class of error."""
        return Counter(call.error for call in self.calls if call.error)

    def failure_ratio(self) -> float:
        """Failed calls among all; 1 where there were none at all."""
        return sum(self.errors().values()) / len(self.calls) if self.calls else 1.0

    def duration_s(self) -> float:
        """From the first call's start to the last one's end."""
        ends = [call.start_s + call.latency_ms / 1e3 for call in self.calls]
        return max(ends) - min(call.start_s for call in self.calls) if ends else 0.0

    def pairs_per_s(self) -> float:
        """Documents of answered calls, per second of the run."""
        done = sum(call.num_documents for call in self.calls if not call.error)
        return done / self.duration_s() if done else 0.0

    def totals(self) -> list[ModelState]:
        """What each model did between the first and the last look at it."""
        found = []
        for model in dict.fromkeys(state.model for state in self.states):
            own = [state for state in self.states if state.model == model]
            found.append(difference(own[0], own[-1]))
        return found

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
    """The totals between two states; the moment is the last one's."""

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
    """A sentence for each threshold that the run did not keep; nothing if all is well."""
    if not recording.calls:
        yield "no call was finished"
        return
    p95_ms = percentile(recording.latencies_ms(), 95)
    if max_p95_ms is not None and not p95_ms <= max_p95_ms:
        yield f"p95 is {p95_ms:.0f} ms, the threshold {max_p95_ms:.0f} ms"
    if recording.failure_ratio() > max_failure_ratio:
        kinds = ", ".join(f"{count} {error}" for error, count in recording.errors().most_common())
        yield f"{recording.failure_ratio():.1%} of the calls failed ({kinds}), the threshold is {max_failure_ratio:.1%}"
