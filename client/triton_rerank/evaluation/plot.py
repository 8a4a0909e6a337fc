"""Figures of one measure: bars of systems side by side, and the measure over the milliseconds of a query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import naming, require

_COLOURS = ("#9aa5b1", "#2f6f9f", "#d1793b", "#5b8c5a", "#8a5a9c", "#b0a030")
_MARKERS = "so^vD*PX"


def plot(collections: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path, measure: str) -> None:
    """Write a figure.

    Args:
        collections: title -> system -> measure -> mean.
        path: The suffix selects the format: .svg, .png, .pdf.
        measure: The measure to draw.

    Raises:
        InvalidRequestError: A collection lacks the measure, or the suffix is unknown.
        OSError: The figure cannot be written; the error names the path.
        RerankError: The extra `eval` is not installed.
    """
    _check(collections, measure)
    figure = require("matplotlib.figure").Figure(figsize=(1.6 + 2.2 * len(collections), 3.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for systems in collections.values() for name in systems))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        heights = [systems[name][measure] if name in systems else 0.0 for systems in collections.values()]
        starts = [number - 0.4 + (index + 0.5) * width for number in range(len(collections))]
        bars = axes.bar(starts, heights, width * 0.92, label=name, color=_COLOURS[index % len(_COLOURS)])
        axes.bar_label(bars, [f"{height:.2f}".lstrip("0") for height in heights], fontsize=7)
    axes.set_xticks(range(len(collections)), list(collections))
    axes.set_ylabel(measure)
    axes.set_ylim(0, 1.08)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    _save(figure, path)


def plot_against_time(
    collections: Mapping[str, Mapping[str, tuple[float, Mapping[str, float]]]], path: Path, measure: str
) -> None:
    """Write a figure of quality over time: a line for each collection, from its fastest to its slowest system.

    Args:
        collections: title -> system -> milliseconds of a query, and measure -> mean.
        path: The suffix selects the format: .svg, .png, .pdf.
        measure: The measure to draw.

    Raises:
        InvalidRequestError: A collection lacks the measure, or the suffix is unknown.
        OSError: The figure cannot be written; the error names the path.
        RerankError: The extra `eval` is not installed.
    """
    _check(
        {title: {name: means for name, (_, means) in systems.items()} for title, systems in collections.items()},
        measure,
    )
    figure = require("matplotlib.figure").Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for systems in collections.values() for name in systems))
    for number, (title, systems) in enumerate(collections.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = sorted((ms, means[measure], name) for name, (ms, means) in systems.items())
        axes.plot([ms for ms, _, _ in points], [mean for _, mean, _ in points], color=colour, lw=1, label=title)
        for ms, mean, name in points:
            axes.plot(ms, mean, _MARKERS[names.index(name) % len(_MARKERS)], color=colour, ms=6)
    for name in names:
        axes.plot([], [], _MARKERS[names.index(name) % len(_MARKERS)], color="#444444", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of a query")
    axes.set_ylabel(measure)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    _save(figure, path)


def _check(collections: Mapping[str, Mapping[str, Mapping[str, float]]], measure: str) -> None:
    for title, systems in collections.items():
        if missing := [name for name, means in systems.items() if measure not in means]:
            raise InvalidRequestError(f"{title}: {missing[0]} has no {measure}; it was not among the --measures")


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401  # matplotlib is imported on use
    try:
        # Without a date in the file, equal values give equal bytes.
        with naming(path):
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except ValueError as error:
        raise InvalidRequestError(f"{path}: {error}") from None
