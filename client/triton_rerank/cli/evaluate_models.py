"""`triton-rerank eval --model A --model B`: several models on the same candidates."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank.errors import InvalidRequestError

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
    """Score with one model after the other, and report them together."""
    from triton_rerank.evaluation.models import evaluate_models
    from triton_rerank.evaluation.report import model_fields

    if repeated := [name for name in options.model if options.model.count(name) > 1]:
        raise InvalidRequestError(f"--model {repeated[0]} is given twice")
    if options.baseline:
        raise InvalidRequestError("--baseline is for one --model; further models are compared with the first one")
    results = {}
    for name in options.model:
        out = options.out / name if options.out else None
        if out:
            out.mkdir(parents=True, exist_ok=True)
        info, found = rerank(argparse.Namespace(**{**vars(options), "model": [name], "out": out}))
        results[name] = model_fields(info), found
    evaluation = evaluate_models(options.measures, collection, first_stage, results, depth)
    if options.out:
        _write(options.out, evaluation, first_stage)
    print(json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) if options.json else evaluation.table())
    return 0


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
