"""report.html of one run or a sweep: one file, plots inside, nothing loaded from elsewhere."""

import html
import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from load.recording import Call, ModelState, Recording, difference, percentile

mpl.rcParams.update({"svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3, "font.size": 9})

PERCENTILES = (50, 95, 99)
WINDOWS = 30  # points of a curve over time
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, th:first-child { text-align: left } svg { max-width: 100%; height: auto }"""


def write_report(path: Path, recordings: Sequence[Recording]) -> None:
    """Write the report: of the only recording, or of a sweep over concurrency, lowest first."""
    parts = sweep_parts(recordings) if len(recordings) > 1 else run_parts(recordings[0])
    title = "Load test of the reranker"
    body = "\n".join(parts)
    page = f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n"
    path.write_text(f"{page}<h1>{title}</h1>\n{body}\n</html>\n", encoding="utf-8")


def run_parts(recording: Recording) -> list[str]:
    """Everything about one run."""
    return [
        options_line(recording),
        "<h2>Calls</h2>",
        calls_table(recording),
        plot(lambda axes: draw_latency(axes, recording)),
        plot(lambda axes: draw_throughput(axes, recording)),
        "<h2>Errors</h2>",
        errors_table(recording),
        "<h2>Inside Triton</h2>",
        models_table(recording),
        plot(lambda axes: draw_queue_and_compute(axes, recording)),
        plot(lambda axes: draw_batches(axes, recording)),
    ]


def sweep_parts(recordings: Sequence[Recording]) -> list[str]:
    """Throughput against latency, and the knee."""
    best = knee(recordings)
    rows = [
        [
            f"{recording.options['num_users']}{' (knee)' if place == best else ''}",
            f"{recording.pairs_per_s():.1f}",
            *(f"{percentile(recording.latencies_ms(), percent):.0f}" for percent in PERCENTILES),
            f"{recording.failure_ratio():.1%}",
            f"{merged_pairs(recording):.1f}",
        ]
        for place, recording in enumerate(recordings)
    ]
    titles = ["concurrency", "pairs/s", *(f"p{percent} ms" for percent in PERCENTILES), "failed", "pairs per batch"]
    return [
        options_line(recordings[0]),
        "<p>The knee is where one more caller costs more latency than it brings throughput.</p>",
        table(titles, rows),
        plot(lambda axes: draw_sweep(axes, recordings, best)),
    ]


def knee(recordings: Sequence[Recording]) -> int:
    """Place of the run with the highest power: throughput over latency (Kleinrock, 1979)."""
    powers = [r.pairs_per_s() / percentile(r.latencies_ms(), 50) if r.latencies_ms() else 0.0 for r in recordings]
    return powers.index(max(powers))


def options_line(recording: Recording) -> str:
    """How the run was asked for."""
    given = ", ".join(f"{name}: {value}" for name, value in recording.options.items() if value not in ("", None, 0.0))
    return f"<p>{html.escape(given)}</p>"


def calls_table(recording: Recording) -> str:
    """A row for each scenario."""
    rows = []
    for scenario in dict.fromkeys(call.scenario for call in recording.calls):
        latencies = recording.latencies_ms(scenario)
        own = [call for call in recording.calls if call.scenario == scenario]
        pairs = sum(call.num_documents for call in own if not call.error) / recording.duration_s()
        values = [f"{percentile(latencies, percent):.0f}" for percent in PERCENTILES]
        rows.append([scenario, str(len(own)), str(len(own) - len(latencies)), f"{pairs:.1f}", *values])
    return table(["scenario", "calls", "failed", "pairs/s", *(f"p{percent} ms" for percent in PERCENTILES)], rows)


def errors_table(recording: Recording) -> str:
    """Failed calls by class of error."""
    if not recording.errors():
        return "<p>None.</p>"
    return table(["error", "calls"], [[error, str(count)] for error, count in recording.errors().most_common()])


def models_table(recording: Recording) -> str:
    """Means of each model's own part in a request."""
    rows = [
        [
            total.model,
            str(total.requests),
            str(total.failures),
            f"{total.pairs / max(1, total.executions):.1f}",
            f"{total.queue_ns / max(1, total.requests) / 1e6:.1f}",
            f"{total.compute_ns / max(1, total.requests) / 1e6:.1f}",
        ]
        for total in recording.totals()
    ]
    return table(["model", "requests", "failed", "pairs per batch", "mean queue ms", "mean compute ms"], rows)


def merged_pairs(recording: Recording) -> float:
    """Mean pairs that the cross-encoder ran together."""
    totals = [total for total in recording.totals() if total.model == "cross_encoder"]
    return totals[0].pairs / max(1, totals[0].executions) if totals else float("nan")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def plot(draw: Callable[[Axes], None]) -> str:
    """A figure as SVG, to stand in HTML."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    draw(figure.subplots())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("?>")[2].partition(">")[2]  # neither XML declaration nor doctype inside HTML


def windows(recording: Recording) -> list[tuple[float, float, list[Call]]]:
    """(middle of a window, its length, the calls that ended in it), in seconds since the first call."""
    begin = min(call.start_s for call in recording.calls)
    length = max(recording.duration_s() / WINDOWS, 1e-3)
    found: list[tuple[float, float, list[Call]]] = [((i + 0.5) * length, length, []) for i in range(WINDOWS)]
    for call in recording.calls:
        end = call.start_s + call.latency_ms / 1e3 - begin
        found[min(WINDOWS - 1, int(end / length))][2].append(call)
    return found


def draw_latency(axes: Axes, recording: Recording) -> None:
    """Percentiles over time."""
    for percent in PERCENTILES:
        points = [
            (middle, percentile(sorted(call.latency_ms for call in calls if not call.error), percent))
            for middle, _, calls in windows(recording)
            if any(not call.error for call in calls)
        ]
        axes.plot([at for at, _ in points], [value for _, value in points], label=f"p{percent}")
    axes.set(title="Latency of answered calls", xlabel="s", ylabel="ms", ylim=(0, None))
    axes.legend(loc="best")


def draw_throughput(axes: Axes, recording: Recording) -> None:
    """Answered pairs and failed calls over time."""
    points = windows(recording)
    pairs = [sum(c.num_documents for c in calls if not c.error) / length for _, length, calls in points]
    axes.plot([middle for middle, _, _ in points], pairs, label="pairs/s")
    failed = [sum(bool(c.error) for c in calls) / length for _, length, calls in points]
    if any(failed):
        axes.plot([middle for middle, _, _ in points], failed, color="tab:red", label="failed calls/s")
    axes.set(title="Throughput", xlabel="s", ylabel="per second", ylim=(0, None))
    axes.legend(loc="best")


def draw_queue_and_compute(axes: Axes, recording: Recording) -> None:
    """Mean milliseconds of a request at each model, over time."""
    for model in ("tokenizer", "cross_encoder"):
        states = [state for state in recording.states if state.model == model]
        steps: list[ModelState] = [difference(*both) for both in pairwise(states)]
        steps = [step for step in steps if step.requests]
        for name, field, style in (("waits", "queue_ns", "--"), ("computes", "compute_ns", "-")):
            values = [getattr(step, field) / step.requests / 1e6 for step in steps]
            axes.plot([step.at_s - states[0].at_s for step in steps], values, style, label=f"{model} {name}")
    axes.set(title="Mean request by part", xlabel="s", ylabel="ms", ylim=(0, None))
    axes.legend(loc="best")


def draw_batches(axes: Axes, recording: Recording) -> None:
    """How many pairs the cross-encoder ran together."""
    total = next((total for total in recording.totals() if total.model == "cross_encoder"), None)
    batches = {int(size): count for size, count in total.batches.items()} if total else {}
    axes.bar(list(batches), list(batches.values()), width=0.9)
    axes.set(title="Batches of cross_encoder by size", xlabel="pairs in a batch", ylabel="batches")


def draw_sweep(axes: Axes, recordings: Sequence[Recording], best: int) -> None:
    """Latency over throughput, one point for each concurrency."""
    rates = [recording.pairs_per_s() for recording in recordings]
    for percent in (50, 95):
        axes.plot(rates, [percentile(r.latencies_ms(), percent) for r in recordings], "o-", label=f"p{percent}")
    for rate, recording in zip(rates, recordings, strict=True):
        middle = percentile(recording.latencies_ms(), 50)
        axes.annotate(f"{recording.options['num_users']}", (rate, middle), (4, -12), textcoords="offset points")
    axes.axvline(rates[best], color="tab:red", linestyle=":", label="knee")
    axes.set(title="Throughput against latency; numbers: concurrency", xlabel="pairs/s", ylabel="ms")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.legend(loc="best")
