"""Draw the figures in docs/assets: `python docs/figures.py`. Numbers come from the tables of docs/benchmarks.

Text and lines are of a grey that reads on white and on black, and the background is transparent.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).parent
BENCHMARKS, ASSETS = DOCS / "benchmarks", DOCS / "assets"
INK, GREEN, BLUE, ORANGE = "#7d8590", "#4d9a06", "#3b82c4", "#d9822b"
FIRST_MS = 0.5  # where the axis of a call begins
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "triton-rerank",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main(folder: Path = ASSETS) -> int:
    """Draw all figures into `folder` and print their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, draw in (("architecture", architecture), ("call", call), ("knee", knee)):
            figure = draw()
            path = folder / f"{name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)
            print(path)
    return 0


def table(page: str, first: str) -> list[list[str]]:
    """Rows of the table in a page of docs/benchmarks whose first heading is `first`.

    Raises:
        ValueError: The page has no such table.
    """
    lines = (BENCHMARKS / page).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    starts = [index for index, row in enumerate(rows) if row[0] == first and len(row) > 1]
    if not starts:
        raise ValueError(f"{page} has no table that begins with {first!r}")
    body = rows[starts[0] + 2 :]
    end = next((index for index, row in enumerate(body) if len(row) < 2), len(body))
    return body[:end]


def architecture() -> plt.Figure:
    """The parts, and the arrows of a call."""
    figure, axes = plt.subplots(figsize=(9.2, 4.4), layout="constrained")
    axes.set(xlim=(0, 100), ylim=(0, 48))
    axes.axis("off")
    box(axes, 1, 34, 25, 12, "your code", "LangChain, LlamaIndex, Haystack,\nor triton_rerank alone", BLUE)
    box(axes, 1, 18, 25, 12, "any language", "Cohere, Jina, TEI ... formats\nover HTTP", BLUE)
    box(axes, 32, 18, 15, 12, "gateway", "HTTP to gRPC", BLUE)
    box(axes, 32, 34, 15, 12, "client", "retries, servers,\ndeadlines", BLUE)
    box(axes, 53, 3, 46, 43, "", "", INK)
    axes.text(54.5, 42.5, "tritonserver", weight="bold", va="center")
    box(axes, 55, 28, 42, 11, "ensemble reranker", "tokenizer  →  cross_encoder", GREEN)
    box(axes, 55, 15.5, 42, 10, "ensemble late_interaction", "late_scorer (cache)  →  late_encoder", GREEN)
    box(axes, 55, 5, 16, 8, "ONNX Runtime", "GPU", ORANGE)
    box(axes, 72.5, 5, 11.5, 8, "TensorRT", "GPU", ORANGE)
    box(axes, 85.5, 5, 11.5, 8, "OpenVINO", "CPU", ORANGE)
    box(axes, 1, 3, 46, 11, "triton-rerank-build", "Hugging Face checkpoint → ONNX, compared with PyTorch", ORANGE)
    for start, end in (((26, 40), (32, 40)), ((26, 24), (32, 24)), ((39.5, 30), (39.5, 34)), ((47, 40), (55, 34))):
        arrow(axes, start, end)
    arrow(axes, (47, 8), (53, 8))
    axes.text(50.2, 39.5, "gRPC", ha="center", fontsize=8)
    return figure


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str, colour: str) -> None:
    """A rounded box with a title and lines below it."""
    style = "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fill=False, edgecolor=colour, linewidth=1.5))
    lines = text.count("\n") + 1
    top = y + height / 2 + (1.4 * lines if text else 0)
    axes.text(x + width / 2, top, title, ha="center", va="center", weight="bold")
    axes.text(x + width / 2, top - 1.6 - 1.5 * lines, text, ha="center", va="center", fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow between two boxes."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 1, "shrinkB": 1})


def call() -> plt.Figure:
    """Where the time of one call goes: a bar for each part, from a trace of Triton and the client's clock.

    The axis is logarithmic, since on a CPU the computation takes hundreds of times as long as everything else.
    """
    rows = table("2026-11-26-call.md", "part")
    figure, axes = plt.subplots(figsize=(9.2, 3.2), layout="constrained")
    colours = {"client": BLUE, "queue": INK, "compute": GREEN}
    for index, (part, kind, start, end) in enumerate(rows):
        begin, length = max(float(start), FIRST_MS), float(end) - float(start)
        axes.barh(index, float(end) - begin, left=begin, color=colours[kind], height=0.6)
        told = f"{part}, {length:.1f} ms"
        axes.annotate(told, (float(end), index), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    last = max(float(row[3]) for row in rows)
    axes.set(xlabel="milliseconds since the call", xscale="log", xlim=(FIRST_MS, 30 * last))
    axes.set_xticks([tick for tick in (1, 10, 100, 1000, 10_000) if tick <= last])
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


def knee() -> plt.Figure:
    """Throughput against latency, by the number of concurrent callers."""
    rows = table("2026-11-26-knee.md", "callers")
    numbers = [[float(cell) for cell in row[:4]] for row in rows]
    figure, axes = plt.subplots(figsize=(9.2, 3.6), layout="constrained")
    throughput = [row[1] for row in numbers]
    for column, label, colour in ((2, "median", GREEN), (3, "p99", ORANGE)):
        axes.plot(throughput, [row[column] for row in numbers], marker="o", color=colour, label=label)
    for callers, x, y, _ in numbers:
        axes.annotate(f"{callers:.0f}", (x, y), textcoords="offset points", xytext=(0, -13), ha="center", fontsize=8.5)
    axes.set(xlabel="pairs per second", ylabel="milliseconds of a call", ylim=(0, None), xlim=(0, None))
    axes.legend(frameon=False, title="by number of callers")
    return figure


def arguments(words: Sequence[str]) -> Path:
    """The folder on the command line, docs/assets without one."""
    return Path(words[0]) if words else ASSETS


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
