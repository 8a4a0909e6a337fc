"""Plot of a comparison: pairs per second of each contender in each cell."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from comparison.peers import OURS, PEERS
from comparison.results import Cell, Comparison

WIDTH = 0.8  # of a group of bars; groups are 1 apart


@mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "compare", "font.size": 9})
def draw(path: Path, comparison: Comparison, cells: Sequence[Cell]) -> None:
    """Write the plot of the cells that have runs."""
    ran = {(run.cell, run.contender) for run in comparison.runs}
    shown = [cell for cell in cells if (str(cell), OURS) in ran]
    names = [name for name in (OURS, *PEERS) if any((str(cell), name) in ran for cell in shown)]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    bar = WIDTH / max(1, len(names))
    for index, name in enumerate(names):
        columns = [column for column, cell in enumerate(shown) if (str(cell), name) in ran]
        heights = [comparison.pairs_per_s(shown[column], name) for column in columns]
        label = PEERS[name].label if name in PEERS else name
        centers = [column - WIDTH / 2 + bar * (index + 0.5) for column in columns]
        axes.bar(centers, heights, bar * 0.9, label=label, color=f"C{index}")
    axes.set_xticks(range(len(shown)), [f"{cell.documents} documents\n{cell.callers} callers" for cell in shown])
    axes.set_ylabel("pairs/s")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, metadata={"Date": None})
