"""`triton-rerank eval --plot`: a figure of earlier results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from triton_rerank.errors import InvalidRequestError


def run_plot(options: argparse.Namespace) -> int:
    """Draw models.json and result.json files, and print the path of the figure."""
    from triton_rerank.evaluation.plot import plot, plot_against_time

    target, *paths = options.plot
    if not paths or target.suffix == ".json":
        raise InvalidRequestError(
            "--plot takes the figure to write, then a models.json or result.json file per collection"
        )
    if options.against_time:
        plot_against_time(dict(zip(_titles(paths), map(_times, paths), strict=True)), target, options.measures[0])
    else:
        plot(dict(zip(_titles(paths), map(_means, paths), strict=True)), target, options.measures[0])
    print(target)
    return 0


def _titles(paths: list[Path]) -> list[str]:
    """Names of the files' folders; whole paths where two folders have the same name.

    Raises:
        InvalidRequestError: A file is given twice.
    """
    resolved = [path.resolve() for path in paths]
    names = [path.parent.name for path in resolved]
    titles = [str(path.parent) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    repeated = next((path for path, title in zip(paths, titles, strict=True) if titles.count(title) > 1), None)
    if repeated is not None:
        raise InvalidRequestError(f"--plot has two files of the folder {repeated.parent}; give one of them")
    return titles


def _means(path: Path) -> dict[str, dict[str, float]]:
    """System -> measure -> mean, from a models.json or a result.json file."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "systems" in summary:
            return {name: fields["mean"] for name, fields in summary["systems"].items()}
        return {"first stage": summary["first_stage"], summary["model"]["model"]: summary["reranked"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidRequestError(f"{path}: not a models.json or result.json file of an evaluation") from None


def _times(path: Path) -> dict[str, tuple[float, dict[str, float]]]:
    """System -> milliseconds of a query, and measure -> mean, of the models and cascades in a models.json file."""
    try:
        systems = json.loads(path.read_text(encoding="utf-8"))["systems"]
        timed = {name: fields for name, fields in systems.items() if "query_s" in fields}
        return {name: (fields["query_s"]["mean"] * 1e3, dict(fields["mean"])) for name, fields in timed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidRequestError(f"{path}: not a models.json file of an evaluation, which has times") from None
