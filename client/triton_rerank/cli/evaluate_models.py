"""`triton-rerank eval --model A --model B` and `--cascade`: several models on the same candidates."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank.errors import InvalidRequestError
from triton_rerank.types import Cascade

if TYPE_CHECKING:
    from triton_rerank.evaluation.collections import Collection
    from triton_rerank.evaluation.journal import Reranked
    from triton_rerank.evaluation.models import ModelsEvaluation
    from triton_rerank.evaluation.trec import Run
    from triton_rerank.types import ModelInfo

Rerank = Callable[[argparse.Namespace], "tuple[ModelInfo, list[Reranked]]"]
"""Scores the candidates with the single model in the options."""


def run_models(
    options: argparse.Namespace, collection: Collection, first_stage: Run, depth: int | None, rerank: Rerank
) -> int:
    """Score with one model after the other, then with their cascades, and report them together."""
    from triton_rerank.evaluation.models import evaluate_models
    from triton_rerank.evaluation.report import model_fields

    if repeated := [name for name in options.model if options.model.count(name) > 1]:
        raise InvalidRequestError(f"--model {repeated[0]} is given twice")
    if options.baseline:
        raise InvalidRequestError("--baseline is for one --model; further models are compared with the first one")
    cascades = _cascades(options)
    results = {}
    for name, cascade in {**dict.fromkeys(options.model), **cascades}.items():
        model = name if cascade is None else options.model[0]
        out = options.out / name if options.out else None
        if out:
            out.mkdir(parents=True, exist_ok=True)
        settings = {**vars(options), "model": [model], "out": out, "cascade": cascade}
        info, found = rerank(argparse.Namespace(**settings))
        results[name] = model_fields(info), found
    evaluation = evaluate_models(options.measures, collection, first_stage, results, depth, cascades)
    if options.out:
        _write(options.out, evaluation, first_stage)
    print(json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) if options.json else evaluation.table())
    return 0


def _cascades(options: argparse.Namespace) -> dict[str, Cascade]:
    """The cascades of --cascade by name.

    The first --model is their last stage. Their first stage is the second --model, or else late interaction, which is
    added to the models.
    """
    if not options.cascade:
        return {}
    if len(options.model) > 2:
        raise InvalidRequestError("--cascade is for two models: --model of the last stage, then that of the first")
    if len(options.model) == 1:
        options.model = [*options.model, Cascade().first]
    return {f"cascade-{keep}": Cascade(keep, options.model[1]) for keep in options.cascade}


def _write(folder: Path, evaluation: ModelsEvaluation, first_stage: Run) -> None:
    from triton_rerank.evaluation.files import write_text
    from triton_rerank.evaluation.rerank import as_run
    from triton_rerank.evaluation.trec import write_run

    write_run(folder / "first_stage.trec", first_stage, "first_stage")
    for name, system in evaluation.systems.items():
        write_run(folder / name / "reranked.trec", as_run(system.results), name)
    text = json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) + "\n"
    write_text(folder / "models.json", text)
    write_text(folder / "models.txt", evaluation.table() + "\n")
