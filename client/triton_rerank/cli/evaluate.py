"""`triton-rerank eval`: does reranking put the right documents on top?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank.cli.evaluate_models import run_models, run_plot
from triton_rerank.cli.evaluate_runs import run_compare
from triton_rerank.errors import InvalidRequestError

if TYPE_CHECKING:
    from triton_rerank.client import RerankClient
    from triton_rerank.evaluation.collections import Collection, Files
    from triton_rerank.evaluation.journal import Journal, Reranked
    from triton_rerank.evaluation.report import Evaluation
    from triton_rerank.evaluation.trec import Run

DESCRIPTION = "Rerank a first stage's candidates with the served model and measure what that changes."

_LONG = f"""\
{DESCRIPTION}

The collection: --beir DIR, or --queries, --corpus and --qrels, or --reranking FILE. The first stage: --run FILE,
or BM25, which is built in (words; pairs of characters in Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese).
"""
_EPILOG = """\
layouts, known by the file's suffix (each also as .gz):
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
  triton-rerank eval --plot scifact.svg results/scifact/models.json

--out keeps every query as it is done: run the same command again after a break, and it goes on.
"""


def add_arguments(parser: argparse.ArgumentParser, connect: Callable[[argparse.Namespace], RerankClient]) -> None:
    """Give the command its options.

    Args:
        parser: The command's own, which has the server's options.
        connect: Makes a client of these.
    """
    parser.description, parser.epilog = _LONG, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(connect=connect)
    data = parser.add_argument_group("collection")
    data.add_argument("--beir", type=Path, metavar="DIR", help="folder with corpus.jsonl, queries.jsonl, qrels")
    data.add_argument("--split", default="test", help="which qrels/SPLIT.tsv of --beir (%(default)s)")
    data.add_argument("--queries", type=Path, metavar="FILE")
    data.add_argument("--corpus", type=Path, metavar="FILE", nargs="+")
    data.add_argument("--qrels", type=Path, metavar="FILE")
    data.add_argument("--reranking", type=Path, metavar="FILE", help="queries with their own documents, as in C-MTEB")
    data.add_argument(
        "--max-queries", type=_positive, metavar="N", help="a sample of N judged queries, the same each time (all)"
    )
    first = parser.add_argument_group("first stage")
    first.add_argument("--run", type=Path, metavar="FILE", dest="run_file", help="a run to rerank (BM25)")
    first.add_argument(
        "--depth",
        type=_positive,
        default=100,
        metavar="N",
        help="candidates of a query (%(default)s; --reranking: all)",
    )
    parser.add_argument(
        "--measures", nargs="+", metavar="MEASURE", help="as ir_measures writes them (nDCG@10 RR@10 R@100 AP Success@1)"
    )
    parser.add_argument("--max-length", type=_positive, metavar="TOKENS", help="of a pair (the server's default)")
    parser.add_argument(
        "--concurrency", type=_positive, default=4, metavar="N", help="queries under way at once (%(default)s)"
    )
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="test against this run, too")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar="RUN", help="hold two runs against each other; asks no server"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="draw the first measure: the figure to write, then models.json files; asks no server",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep runs, result.json, report.txt and scores here")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Evaluate, or compare two runs."""
    from triton_rerank.evaluation.measures import DEFAULT_MEASURES, check_measures

    options.measures = check_measures(options.measures or DEFAULT_MEASURES)
    options.model = options.model or ["reranker"]
    if options.compare:
        return run_compare(options)
    if options.plot:
        return run_plot(options)
    collection, first_stage, depth = _prepare(options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)

    def rerank(options: argparse.Namespace) -> tuple[dict[str, Any], list[Reranked]]:
        with options.connect(options) as client:
            model = _model_fields(client)
            with _journal(options, model) if options.out else nullcontext() as journal:
                return model, _rerank(client, collection, first_stage, options, journal)

    if len(options.model) > 1:
        return run_models(options, collection, first_stage, depth, rerank)
    model, results = rerank(options)
    _report(options, collection, first_stage, results, depth, model)
    return 0


def _prepare(options: argparse.Namespace) -> tuple[Collection, Run, int | None]:
    """The collection, the candidates of each query, and how many of them were taken at most."""
    from triton_rerank.evaluation.collections import check_documents, load_files, load_queries, load_reranking
    from triton_rerank.evaluation.trec import read_qrels, read_run, top

    if options.reranking:
        if options.beir or options.queries or options.corpus or options.qrels or options.run_file:
            raise InvalidRequestError("--reranking brings queries, documents and judgements; give it alone")
        collection = load_reranking(options.reranking, options.max_queries)
        return collection, _bm25(collection, None), None
    files = _files(options)
    if options.run_file is None:
        collection = load_files(files, options.max_queries)
        return collection, _bm25(collection, options.depth), options.depth
    queries, _ = load_queries(files.queries, read_qrels(files.qrels), options.max_queries)
    whole = read_run(options.run_file)
    candidates = {query_id: top(whole.get(query_id, {}), options.depth) for query_id in queries}
    wanted = {doc_id for scores in candidates.values() for doc_id in scores}
    collection = load_files(files, options.max_queries, wanted)
    check_documents(collection.documents, candidates.items(), str(options.run_file))
    return collection, candidates, options.depth


def _files(options: argparse.Namespace) -> Files:
    from triton_rerank.evaluation.collections import Files, beir_files

    if options.beir:
        if options.queries or options.corpus or options.qrels:
            raise InvalidRequestError("give --beir, or --queries with --corpus and --qrels, not both")
        return beir_files(options.beir, options.split)
    missing = [name for name in ("queries", "corpus", "qrels") if not getattr(options, name)]
    if missing:
        raise InvalidRequestError(
            f"--{missing[0]} is missing; give --beir DIR, or --queries, --corpus and --qrels, or --reranking FILE"
        )
    return Files(options.queries, tuple(options.corpus), options.qrels)


def _bm25(collection: Collection, depth: int | None) -> Run:
    from triton_rerank.evaluation.bm25 import Bm25

    with _bar(len(collection.documents), "indexing", "documents") as advance:
        index = Bm25(collection.documents, advance)
    found: Run = {}
    with _bar(len(collection.queries), "BM25", "queries") as advance:
        for query_id, text in collection.queries.items():
            if collection.candidates is not None:
                found[query_id] = index.score(text, collection.candidates[query_id])
            else:
                found[query_id] = index.search(text, depth or len(collection.documents))
            advance()
    return found


def _model_fields(client: RerankClient) -> dict[str, Any]:
    info = asdict(client.model_info())
    return {name: info[name] for name in ("model", "checkpoint", "revision", "precision", "runtime")}


def _journal(options: argparse.Namespace, model: dict[str, Any]) -> Journal:
    from triton_rerank.evaluation.journal import Journal

    given = [options.reranking] if options.reranking else [options.beir or options.queries, *(options.corpus or ())]
    collection = [str(path.resolve()) for path in given]
    settings = {"collection": collection, "max_length": options.max_length, **model}
    return Journal(options.out / "scores.jsonl", settings)


def _rerank(
    client: RerankClient, collection: Collection, first_stage: Run, options: argparse.Namespace, journal: Journal | None
) -> list[Reranked]:
    from triton_rerank.evaluation.rerank import rerank_queries

    # Scores count only for the very candidates that are asked for now: --depth and --run may have changed.
    kept = journal.done if journal else {}
    done = {
        query_id: kept[query_id]
        for query_id, scores in first_stage.items()
        if query_id in kept and kept[query_id].scores.keys() == scores.keys()
    }
    with _bar(len(collection.queries), "reranking", "queries", len(done)) as advance:

        def keep(reranked: Reranked) -> None:
            if journal:
                journal.append(reranked)
            advance()

        results = rerank_queries(
            client,
            collection,
            first_stage,
            done=done,
            keep=keep,
            concurrency=options.concurrency,
            max_length=options.max_length,
        )
    return list(results.values())


def _report(
    options: argparse.Namespace,
    collection: Collection,
    first_stage: Run,
    results: list[Reranked],
    depth: int | None,
    model: dict[str, Any],
) -> None:
    from triton_rerank.evaluation.report import evaluate
    from triton_rerank.evaluation.trec import read_run

    baseline = read_run(options.baseline) if options.baseline else None
    evaluation = evaluate(
        options.measures, collection.qrels, first_stage, results, baseline=baseline, depth=depth, model=model
    )
    if options.out:
        _write(options.out, evaluation, first_stage)
    print(json.dumps(evaluation.summary(), ensure_ascii=False, indent=2) if options.json else evaluation.table())


def _write(folder: Path, evaluation: Evaluation, first_stage: Run) -> None:
    from triton_rerank.evaluation.rerank import as_run
    from triton_rerank.evaluation.trec import write_run

    write_run(folder / "first_stage.trec", first_stage, "first_stage")
    write_run(folder / "reranked.trec", as_run(evaluation.results), "reranked")
    whole = evaluation.summary() | {"per_query": evaluation.per_query()}
    (folder / "result.json").write_text(json.dumps(whole, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "report.txt").write_text(evaluation.table() + "\n", encoding="utf-8")


@contextmanager
def _bar(total: int, title: str, unit: str, done: int = 0) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from triton_rerank.evaluation.extras import require

    with require("tqdm").tqdm(
        total=total, initial=done, desc=title, unit=f" {unit}", disable=None, file=sys.stderr, leave=False
    ) as bar:
        yield bar.update


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return number
