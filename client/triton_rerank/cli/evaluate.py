"""`triton-rerank eval`: options, and the evaluation of one model."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank.cli.connection import connected
from triton_rerank.cli.evaluate_models import run_models
from triton_rerank.cli.evaluate_plot import run_plot
from triton_rerank.cli.evaluate_runs import run_compare
from triton_rerank.cli.output import progress
from triton_rerank.cli.values import depth, kept, positive
from triton_rerank.errors import InvalidRequestError

if TYPE_CHECKING:
    from triton_rerank.client import RerankClient
    from triton_rerank.evaluation.collections import Collection
    from triton_rerank.evaluation.journal import Journal, Reranked
    from triton_rerank.evaluation.report import Evaluation
    from triton_rerank.evaluation.trec import Run
    from triton_rerank.types import ModelInfo

DESCRIPTION = "Rerank a first stage's candidates with the served model and measure both orders."

_LONG = f"""\
{DESCRIPTION}

The collection: --beir DIR, or --queries, --corpus and --qrels, or --reranking FILE. The first stage: --run FILE, or the
built-in BM25 (words; character bigrams in Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese).
"""
_EPILOG = """\
layouts, selected by the file's suffix (each also as .gz):
  queries   .jsonl: "_id", "text"              other: id TAB text
  corpus    .jsonl: "_id" or "docid", "title", "text"   other: id TAB text; several files may be given
  qrels     query 0 document relevance         or BEIR's query document relevance
  runs      query Q0 document rank score tag   or MS MARCO's query document rank
  --reranking  .jsonl: "query", "positive": [...], "negative": [...]

examples:
  triton-rerank eval --beir scifact --out results/scifact
  triton-rerank eval --queries queries.dev.small.tsv --corpus collection.tsv --qrels qrels.dev.small.tsv \\
      --run run.bm25.tsv --depth 1000 --measures RR@10 R@1000 --out results/msmarco
  triton-rerank eval --queries topics.tsv --corpus docs-*.jsonl.gz --qrels qrels.tsv --measures nDCG@10 R@100
  triton-rerank eval --reranking T2Reranking-dev.jsonl --measures AP RR@10
  triton-rerank eval --beir scifact --compare results/a/reranked.trec results/b/reranked.trec
  triton-rerank eval --beir scifact --model reranker --model late_interaction --out results/scifact
  triton-rerank eval --beir scifact --depth 1000 --cascade 20 50 100 --concurrency 1 --out results/scifact
  triton-rerank eval --plot scifact.svg results/scifact/models.json

--out keeps each query when it completes: after an interruption the same command resumes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `eval`.

    Args:
        parser: The command's parser, which has the server's options.
    """
    parser.description, parser.epilog = _LONG, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_collection_arguments(parser)
    parser.add_argument(
        "--measures", nargs="+", metavar="MEASURE", help="in ir_measures' notation (nDCG@10 RR@10 R@100 AP Success@1)"
    )
    parser.add_argument(
        "--cascade",
        type=kept,
        nargs="+",
        metavar="KEEP",
        help="beside --model and late interaction (or a second --model) alone, their cascades: the documents that "
        "--model scores, or with a decimal point their share",
    )
    parser.add_argument("--max-length", type=positive, metavar="TOKENS", help="of a pair (the server's default)")
    parser.add_argument(
        "--concurrency", type=positive, default=4, metavar="N", help="queries in flight at once (%(default)s)"
    )
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="compare with this run, too")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar="RUN", help="compare two runs on the queries of both; needs no server"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="draw the first measure: the figure to write, then models.json or result.json files; needs no server",
    )
    parser.add_argument(
        "--against-time", action="store_true", help="draw --plot over the milliseconds of a query, from models.json"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep runs, result.json, report.txt and scores here")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_collection_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("collection")
    data.add_argument("--beir", type=Path, metavar="DIR", help="folder with corpus.jsonl, queries.jsonl, qrels")
    data.add_argument("--split", help="use qrels/SPLIT.tsv of --beir (qrels/test.tsv, else qrels.tsv)")
    data.add_argument("--queries", type=Path, metavar="FILE")
    data.add_argument("--corpus", type=Path, metavar="FILE", nargs="+")
    data.add_argument("--qrels", type=Path, metavar="FILE")
    data.add_argument("--reranking", type=Path, metavar="FILE", help="queries with their own documents, as in C-MTEB")
    data.add_argument(
        "--max-queries", type=positive, metavar="N", help="a sample of N judged queries, the same each time (all)"
    )
    first = parser.add_argument_group("first stage")
    first.add_argument("--run", type=Path, metavar="FILE", dest="run_file", help="a run to rerank (BM25)")
    first.add_argument(
        "--depth",
        type=depth,
        default=100,
        metavar="N",
        help='candidates per query, or "all" documents (%(default)s; --reranking: all)',
    )


def run(options: argparse.Namespace) -> int:
    """Run `eval`."""
    from triton_rerank.cli.candidates import check_inputs, load
    from triton_rerank.evaluation.files import output_folder
    from triton_rerank.evaluation.measures import check_measures, default_measures

    _check(options)
    without_depth = options.compare or options.plot or options.reranking
    names = options.measures or default_measures(None if without_depth else options.depth)
    options.measures = check_measures(names)
    options.model = options.model or ["reranker"]
    if options.compare:
        return run_compare(options)
    if options.plot:
        return run_plot(options)
    files = check_inputs(options)
    with ExitStack() as stack:
        if options.out:  # before any work, so that a folder in use or read-only is reported at once
            stack.enter_context(output_folder(options.out))
        collection, first_stage, depth = load(options, files)

        def rerank(options: argparse.Namespace) -> tuple[ModelInfo, list[Reranked]]:
            with connected(options) as client:
                info = client.model_info()
                with _journal(options, info) if options.out else nullcontext() as journal:
                    return info, _rerank(client, collection, first_stage, options, journal)

        if len(options.model) > 1 or options.cascade:
            return run_models(options, collection, first_stage, depth, rerank)
        info, results = rerank(options)
        _report(options, collection, first_stage, results, depth, info)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    if options.split and not options.beir:
        raise InvalidRequestError("--split selects a file of --beir DIR; give both, or name the file with --qrels")
    if options.against_time and not options.plot:
        raise InvalidRequestError("--against-time is an option of --plot; give both")
    mode = "--compare" if options.compare else "--plot" if options.plot else None
    if mode is None:
        return
    if options.compare and options.plot:
        raise InvalidRequestError("--compare and --plot are separate commands; give one of them")
    unused = {
        "--run": options.run_file,
        "--baseline": options.baseline,
        "--out": options.out,
        "--cascade": options.cascade,
    }
    given = [name for name, value in unused.items() if value]
    if given:
        raise InvalidRequestError(f"{given[0]} has no effect with {mode}; leave it out")


def _journal(options: argparse.Namespace, info: ModelInfo) -> Journal:
    from triton_rerank.evaluation.journal import Journal
    from triton_rerank.evaluation.report import model_fields

    given = [options.reranking] if options.reranking else [options.beir or options.queries, *(options.corpus or ())]
    collection = [str(path.resolve()) for path in given]
    cascade = None if options.cascade is None else asdict(options.cascade)
    settings = {"collection": collection, "max_length": options.max_length, "cascade": cascade, **model_fields(info)}
    return Journal(options.out / "scores.jsonl", settings)


def _rerank(
    client: RerankClient, collection: Collection, first_stage: Run, options: argparse.Namespace, journal: Journal | None
) -> list[Reranked]:
    from triton_rerank.evaluation.rerank import Inputs, rerank_queries

    # Other candidates (--depth, --run) and edited texts are scored again.
    done = Inputs(collection, first_stage).unchanged(journal.done) if journal else {}
    completed, total = len(done), len(collection.queries)
    with progress("reranking", total, "queries", completed) as advance:

        def keep(reranked: Reranked) -> None:
            nonlocal completed
            if journal:
                journal.append(reranked)
            completed += 1
            advance()

        try:
            results = rerank_queries(
                client,
                collection,
                first_stage,
                done=done,
                keep=keep,
                concurrency=options.concurrency,
                max_length=options.max_length,
                cascade=options.cascade,
            )
        except KeyboardInterrupt:
            kept = "the same command resumes" if journal else "nothing was kept; --out DIR keeps completed queries"
            raise KeyboardInterrupt(f"interrupted after {completed} of {total} queries; {kept}") from None
    return list(results.values())


def _report(
    options: argparse.Namespace,
    collection: Collection,
    first_stage: Run,
    results: list[Reranked],
    depth: int | None,
    info: ModelInfo,
) -> None:
    from triton_rerank.evaluation.pool import pool_of
    from triton_rerank.evaluation.report import evaluate, model_fields
    from triton_rerank.evaluation.trec import read_run

    baseline = read_run(options.baseline) if options.baseline else None
    evaluation = evaluate(
        options.measures,
        collection.qrels,
        first_stage,
        results,
        baseline=baseline,
        depth=depth,
        model=model_fields(info),
        pool=pool_of(collection, first_stage),
        logit_scale=info.logit_scale,
    )
    if evaluation.baseline is not None and (left_out := evaluation.baseline.left_out()):
        print(f"triton-rerank: --baseline {options.baseline}, {left_out}", file=sys.stderr)
    if options.out:
        _write(options.out, evaluation, first_stage)
    print(json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) if options.json else evaluation.table())


def _write(folder: Path, evaluation: Evaluation, first_stage: Run) -> None:
    from triton_rerank.evaluation.files import write_text
    from triton_rerank.evaluation.rerank import as_run
    from triton_rerank.evaluation.trec import write_run

    write_run(folder / "first_stage.trec", first_stage, "first_stage")
    write_run(folder / "reranked.trec", as_run(evaluation.results), "reranked")
    whole = evaluation.summary() | {"per_query": evaluation.per_query()}
    write_text(folder / "result.json", json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
    write_text(folder / "report.txt", evaluation.table() + "\n")
