"""report.html of one run or a sweep: a single file with inline plots."""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from load.plots import (
    PLOT_STYLE,
    draw_batches,
    draw_errors,
    draw_latency,
    draw_queue_and_compute,
    draw_sweep,
    draw_throughput,
)
from load.recording import PERCENTILES, Recording, percentile

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, th:first-child { text-align: left } svg { max-width: 100%; height: auto }"""


def write_report(path: Path, recordings: Sequence[Recording]) -> None:
    """Write the report of one recording, or of a sweep with the lowest concurrency first."""
    parts = sweep_parts(recordings) if len(recordings) > 1 else run_parts(recordings[0])
    title = "Load test of the reranker"
    body = "\n".join(parts)
    page = f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n"
    path.write_text(f"{page}<h1>{title}</h1>\n{body}\n</html>\n", encoding="utf-8")


def run_parts(recording: Recording) -> list[str]:
    """The report of one run."""
    if not recording.calls:
        return [options_line(recording), "<p>No call was finished.</p>"]
    parts = [options_line(recording), "<h2>Calls</h2>", calls_table(recording)]
    if recording.latencies_ms():
        parts += [plot(lambda axes: draw_latency(axes, recording)), plot(lambda axes: draw_throughput(axes, recording))]
    parts += ["<h2>Errors</h2>", errors_table(recording)]
    if recording.errors():
        parts.append(plot(lambda axes: draw_errors(axes, recording)))
    parts.append("<h2>Inside Triton</h2>")
    if not recording.active_models():
        return [*parts, "<p>No statistics of Triton were read, or no request reached a model.</p>"]
    return [
        *parts,
        models_table(recording),
        plot(lambda axes: draw_queue_and_compute(axes, recording)),
        plot(lambda axes: draw_batches(axes, recording)),
    ]


def sweep_parts(recordings: Sequence[Recording]) -> list[str]:
    """The report of a sweep: throughput against latency, and the knee."""
    best = knee(recordings)
    rows = [
        [
            f"{recording.options['num_users']}{' (knee)' if index == best else ''}",
            f"{recording.pairs_per_s():.1f}",
            *(f"{percentile(recording.latencies_ms(), percent):.0f}" for percent in PERCENTILES),
            f"{recording.failure_ratio():.1%}",
            f"{merged_pairs(recording):.1f}",
        ]
        for index, recording in enumerate(recordings)
    ]
    titles = ["concurrency", "pairs/s", *(f"p{percent} ms" for percent in PERCENTILES), "failed", "pairs per batch"]
    return [
        options_line(recordings[0]),
        "<p>The knee is where one more caller costs more latency than it brings throughput.</p>",
        table(titles, rows),
        plot(lambda axes: draw_sweep(axes, recordings, best)),
    ]


def knee(recordings: Sequence[Recording]) -> int | None:
    """Index of the run with the highest power: throughput over latency (Kleinrock, 1979). None if all calls failed."""
    powers = [r.pairs_per_s() / percentile(r.latencies_ms(), 50) if r.latencies_ms() else 0.0 for r in recordings]
    return powers.index(max(powers)) if any(powers) else None


def options_line(recording: Recording) -> str:
    """The options of the run."""
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
    """Means per request of each model that had requests."""
    rows = [
        [
            total.model,
            str(total.requests),
            str(total.failures),
            f"{total.pairs / max(1, total.executions):.1f}",
            f"{total.queue_ns / max(1, total.requests) / 1e6:.1f}",
            f"{total.compute_ns / max(1, total.requests) / 1e6:.1f}",
        ]
        for total in recording.active_models()
    ]
    return table(["model", "requests", "failed", "pairs per batch", "mean queue ms", "mean compute ms"], rows)


def merged_pairs(recording: Recording) -> float:
    """Mean batch size of the cross-encoder."""
    totals = [total for total in recording.totals() if total.model == "cross_encoder"]
    return totals[0].pairs / max(1, totals[0].executions) if totals else float("nan")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


@mpl.rc_context(PLOT_STYLE)
def plot(draw: Callable[[Axes], None]) -> str:
    """A figure as SVG for HTML."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    draw(figure.subplots())
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("?>")[2].partition(">")[2]  # without XML declaration and doctype
