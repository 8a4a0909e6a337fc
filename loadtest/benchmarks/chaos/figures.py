"""Figures of a run: of each event while it lasts and afterwards, and of all."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.chaos.callers import Call
from benchmarks.chaos.events import Event
from load.plots import PLOT_STYLE, legend
from load.recording import percentile

LOST = ("down", "timeout", "hung", "failed")


@dataclass
class Happened:
    """One event of a run; times are seconds since its start."""

    name: str
    title: str
    begin_s: float
    end_s: float
    """When the fault, or what caused it, was over."""
    ready_s: float
    """When every server scored a pair again."""
    until_s: float
    """When the next event began."""
    notes: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

    @property
    def recovered_s(self) -> float:
        """Seconds from the end of the fault until every server scored a pair."""
        return self.ready_s - self.end_s

    def during(self, calls: Iterable[Call]) -> list[Call]:
        """The calls that ended from its begin until every server was ready."""
        return [call for call in calls if self.begin_s <= call.start_s + call.seconds < self.ready_s]

    def after(self, calls: Iterable[Call]) -> list[Call]:
        """The calls that ended afterwards, until the next event."""
        return [call for call in calls if self.ready_s <= call.start_s + call.seconds < self.until_s]


def happened(event: Event, begin_s: float, end_s: float, ready_s: float, notes: list[str]) -> Happened:
    """The record of an event, before the next one."""
    return Happened(event.name, event.title, begin_s, end_s, ready_s, ready_s, notes, tuple(sorted(event.allowed)))


def p99_ms(calls: Iterable[Call]) -> float:
    """99th percentile of the latency of right answers, in milliseconds; NaN of none."""
    return percentile(sorted(1e3 * call.seconds for call in calls if not call.outcome), 99)


def faults(events: Sequence[Happened], calls: Sequence[Call]) -> list[str]:
    """A sentence for each outcome that may not be."""
    found = []
    for event in events:
        there = event.during(calls) + event.after(calls)
        for (way, outcome), count in Counter((call.way, call.outcome) for call in there).items():
            if outcome and outcome not in event.allowed:
                detail = next(call.detail for call in there if (call.way, call.outcome) == (way, outcome))
                found.append(f"{event.name}: {count} calls by {way}: {outcome} ({detail[:300]})")
        found += [f"{event.name}: {note}" for note in event.notes]
    return found


def table(events: Sequence[Happened], calls: Sequence[Call]) -> str:
    """A row for each event, as Markdown."""
    rows = [
        "| event | calls | lost | wrong | refused | p99 during, ms | p99 after, ms | recovered, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for event in events:
        during, after = event.during(calls), event.after(calls)
        seen = Counter(call.outcome for call in during + after)
        lost = sum(seen[outcome] for outcome in LOST)
        cells = [event.name, f"{len(during)} + {len(after)}", lost, seen["wrong"], seen["overload"]]
        cells += [f"{p99_ms(during):.0f}", f"{p99_ms(after):.0f}", f"{event.recovered_s:.1f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def result(events: Sequence[Happened], calls: Sequence[Call]) -> str:
    """The line RESULT."""
    seen = Counter(call.outcome for call in calls)
    during = [call for event in events for call in event.during(calls)]
    after = [call for event in events for call in event.after(calls)]
    figures = {
        "events": len(events),
        "calls": len(calls),
        "lost": sum(seen[outcome] for outcome in LOST),
        "wrong": seen["wrong"],
        "overload": seen["overload"],
        "recovered_s": f"{max(event.recovered_s for event in events):.1f}",
        "p99_during_ms": f"{p99_ms(during):.0f}",
        "p99_after_ms": f"{p99_ms(after):.0f}",
    }
    return "RESULT " + " ".join(f"{name}={value}" for name, value in figures.items())


def as_json(events: Sequence[Happened], calls: Sequence[Call], options: dict[str, Any]) -> dict[str, Any]:
    """Everything, for other tools."""
    return {
        "options": options,
        "events": [asdict(event) | {"recovered_s": event.recovered_s} for event in events],
        "calls": [[call.way, round(call.start_s, 3), round(call.seconds, 4), call.outcome] for call in calls],
        "faults": faults(events, calls),
    }


def draw(events: Sequence[Happened], calls: Sequence[Call], path: Path) -> None:
    """The slowest call of each second, what was lost or refused, and the events."""
    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
        for way in ("client", "gateway"):
            slowest: dict[int, float] = {}
            for call in calls:
                if call.way == way and not call.outcome:
                    second = int(call.start_s)
                    slowest[second] = max(slowest.get(second, 0.0), 1e3 * call.seconds)
            moments = sorted(slowest)
            axes.plot(moments, [slowest[second] for second in moments], label=f"{way}: slowest call", linewidth=0.8)
        for outcome in sorted({call.outcome for call in calls} - {""}):
            those = [call for call in calls if call.outcome == outcome]
            axes.plot([c.start_s for c in those], [1e3 * c.seconds for c in those], "x", label=outcome)
        for number, event in enumerate(events):
            axes.axvspan(event.begin_s, max(event.end_s, event.begin_s + 0.5), color=f"C{number}", alpha=0.25)
            axes.axvspan(event.end_s, event.ready_s, color=f"C{number}", alpha=0.1)
            at = (event.begin_s, 1.01)
            axes.annotate(event.name, at, xycoords=("data", "axes fraction"), rotation=45, fontsize=7)
        axes.set(xlabel="s", ylabel="ms", yscale="log")
        legend(axes)
        figure.savefig(path)
        plt.close(figure)
