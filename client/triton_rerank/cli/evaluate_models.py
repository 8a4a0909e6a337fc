"""`triton-rerank eval --model A --model B`: several models on the same candidates; and the plot of such results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank.errors import InvalidRequestError

if TYPE_CHECKING:
    from triton_rerank.evaluation.collections import Collection
    from triton_rerank.evaluation.journal import Reranked
    from triton_rerank.evaluation.models import ModelsEvaluation
    from triton_rerank.evaluation.trec import Run

Rerank = Callable[[argparse.Namespace], "tuple[dict[str, Any], list[Reranked]]"]
"""Scores the candidates with the one model that the options name."""


def run_models(
    options: argparse.Namespace, collection: Collection, first_stage: Run, depth: int | None, rerank: Rerank
) -> int:
    """Ask one model after the other, and report them together."""
    from triton_rerank.evaluation.models import evaluate_models

    if repeated := [name for name in options.model if options.model.count(name) > 1]:
        raise InvalidRequestError(f"--model {repeated[0]} is given twice")
    if options.baseline:
        raise InvalidRequestError("--baseline is for one --model; further models are compared with the first one")
    results = {}
    for name in options.model:
        out = options.out / name if options.out else None
        if out:
            out.mkdir(parents=True, exist_ok=True)
        results[name] = rerank(argparse.Namespace(**{**vars(options), "model": [name], "out": out}))
    evaluation = evaluate_models(options.measures, collection, first_stage, results, depth)
    if options.out:
        _write(options.out, evaluation, first_stage)
    print(json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) if options.json else evaluation.table())
    return 0


def _write(folder: Path, evaluation: ModelsEvaluation, first_stage: Run) -> None:
    from triton_rerank.evaluation.rerank import as_run
    from triton_rerank.evaluation.trec import write_run

    write_run(folder / "first_stage.trec", first_stage, "first_stage")
    for name, system in evaluation.systems.items():
        write_run(folder / name / "reranked.trec", as_run(system.results), name)
    text = json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) + "\n"
    (folder / "models.json").write_text(text, encoding="utf-8")
    (folder / "models.txt").write_text(evaluation.table() + "\n", encoding="utf-8")


def run_plot(options: argparse.Namespace) -> int:
    """Draw the models.json of one or more collections."""
    from triton_rerank.evaluation.plot import plot

    target, *paths = options.plot
    if not paths:
        raise InvalidRequestError("--plot takes the file to draw, then the models.json of each collection")
    found = {}
    for path in paths:
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            found[path.parent.name] = {name: fields["mean"] for name, fields in summary["systems"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InvalidRequestError(f"{path}: no models.json of an evaluation of several models") from None
    plot(found, target, options.measures[0])
    return 0
