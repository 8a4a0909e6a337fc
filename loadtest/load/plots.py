"""Plots of the report."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes

from load.recording import PERCENTILES, Call, ModelState, Recording, difference, percentile

PLOT_STYLE = {"svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
WINDOWS = 30  # points of a curve over time
ENSEMBLES = ("reranker", "late_interaction")  # Triton reports the sum of their models' compute time for them


def legend(axes: Axes) -> None:
    """Put the legend beside the axes, where it hides no curve."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)


def window_length_s(recording: Recording) -> float:
    """Seconds of one of the WINDOWS equal parts of the run."""
    return max(recording.duration_s() / WINDOWS, 1e-3)


def middles(recording: Recording) -> list[float]:
    """Middle of each window, in seconds since the first call."""
    length = window_length_s(recording)
    return [(index + 0.5) * length for index in range(WINDOWS)]


def windows(recording: Recording) -> list[list[Call]]:
    """The calls that ended in each window."""
    begin, length = recording.begin_s(), window_length_s(recording)
    found: list[list[Call]] = [[] for _ in range(WINDOWS)]
    for call in recording.calls:
        found[min(WINDOWS - 1, int((call.end_s() - begin) / length))].append(call)
    return found


def throughput(recording: Recording) -> list[float]:
    """Answered pairs per second in each window.

    The pairs of a call count evenly over the time from its start to its end. Counted at its end, a call longer than a
    window would alternate between a spike and zero.
    """
    begin, length = recording.begin_s(), window_length_s(recording)
    pairs = [0.0] * WINDOWS
    for call in recording.calls:
        if call.error:
            continue
        start, end = call.start_s - begin, call.end_s() - begin
        first, last = (min(WINDOWS - 1, int(moment / length)) for moment in (start, end))
        if first == last:
            pairs[first] += call.num_documents
            continue
        for index in range(first, last + 1):
            overlap = min(end, (index + 1) * length) - max(start, index * length)
            pairs[index] += call.num_documents * max(0.0, overlap) / (end - start)
    return [count / length for count in pairs]


def draw_latency(axes: Axes, recording: Recording) -> None:
    """Percentiles over time."""
    answered = [sorted(call.latency_ms for call in calls if not call.error) for calls in windows(recording)]
    points = [(middle, values) for middle, values in zip(middles(recording), answered, strict=True) if values]
    for percent in PERCENTILES:
        values = [percentile(latencies, percent) for _, latencies in points]
        axes.plot([middle for middle, _ in points], values, ".-", label=f"p{percent}")
    axes.set(title="Latency of answered calls", xlabel="s", ylabel="ms", ylim=(0, None))
    legend(axes)


def draw_throughput(axes: Axes, recording: Recording) -> None:
    """Answered pairs over time."""
    axes.plot(middles(recording), throughput(recording))
    axes.set(title="Throughput", xlabel="s", ylabel="pairs/s", ylim=(0, None))


def draw_errors(axes: Axes, recording: Recording) -> None:
    """Failed calls over time, by class of error."""
    ended, length = windows(recording), window_length_s(recording)
    for error in recording.errors():
        rates = [sum(call.error == error for call in calls) / length for calls in ended]
        axes.plot(middles(recording), rates, drawstyle="steps-mid", label=error)
    axes.set(title="Failed calls", xlabel="s", ylabel="calls/s", ylim=(0, None))
    legend(axes)


def draw_queue_and_compute(axes: Axes, recording: Recording) -> None:
    """Mean queue time and compute time per request of each model, over time."""
    begin = min(state.at_s for state in recording.states)
    models = [total.model for total in recording.active_models() if total.model not in ENSEMBLES]
    for index, model in enumerate(models):
        states = [state for state in recording.states if state.model == model]
        steps: list[ModelState] = [difference(*both) for both in pairwise(states)]
        steps = [step for step in steps if step.requests]
        for name, field, style in (("queue", "queue_ns", "--"), ("compute", "compute_ns", "-")):
            values = [getattr(step, field) / step.requests / 1e6 for step in steps]
            moments = [step.at_s - begin for step in steps]
            axes.plot(moments, values, style, color=f"C{index}", label=f"{model}: {name}")
    axes.set(title="Mean time of a request", xlabel="s", ylabel="ms", ylim=(0, None))
    legend(axes)


def draw_batches(axes: Axes, recording: Recording) -> None:
    """Batches of the cross-encoder by size."""
    total = next((total for total in recording.totals() if total.model == "cross_encoder"), None)
    batches = {int(size): count for size, count in total.batches.items()} if total else {}
    axes.bar(list(batches), list(batches.values()), width=0.9)
    axes.set(title="Batches of cross_encoder by size", xlabel="pairs in a batch", ylabel="batches")


def draw_sweep(axes: Axes, recordings: Sequence[Recording], best: int | None) -> None:
    """Latency over throughput, one point for each concurrency."""
    rates = [recording.pairs_per_s() for recording in recordings]
    for percent in (50, 95):
        axes.plot(rates, [percentile(r.latencies_ms(), percent) for r in recordings], "o-", label=f"p{percent}")
    for rate, recording in zip(rates, recordings, strict=True):
        if latencies := recording.latencies_ms():
            label = f"{recording.options['num_users']}"
            axes.annotate(label, (rate, percentile(latencies, 50)), (4, -12), textcoords="offset points")
    if best is not None:
        axes.axvline(rates[best], color="tab:red", linestyle=":", label="knee")
    axes.set(title="Throughput against latency; numbers: concurrency", xlabel="pairs/s", ylabel="ms")
    axes.set(xlim=(0, None), ylim=(0, None))
    legend(axes)
