"""The collection of an evaluation, and the candidates of its first stage."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from triton_rerank.cli.output import progress
from triton_rerank.errors import InvalidRequestError

if TYPE_CHECKING:
    from triton_rerank.evaluation.collections import Collection, Files
    from triton_rerank.evaluation.trec import Run


def check_inputs(options: argparse.Namespace) -> Files | None:
    """Check the options of the collection before anything is read.

    Returns:
        The collection's files; None for --reranking.

    Raises:
        InvalidRequestError: Options are missing or conflict, or a BEIR folder is incomplete.
    """
    from triton_rerank.evaluation.collections import Files, beir_files

    if options.reranking:
        if options.beir or options.queries or options.corpus or options.qrels or options.run_file:
            raise InvalidRequestError("--reranking contains queries, documents and judgements; give it alone")
        return None
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


def load(options: argparse.Namespace, files: Files | None) -> tuple[Collection, Run, int | None]:
    """Read the collection, and read or compute the first stage.

    Args:
        options: Parsed options.
        files: From `check_inputs`.

    Returns:
        The collection, the candidates of each query, and the limit of candidates per query, None for all.
    """
    from triton_rerank.evaluation.collections import load_files, load_reranking

    if files is None:
        collection = load_reranking(options.reranking, options.max_queries)
        return collection, _bm25(collection, None), None
    if options.run_file is None:
        collection = load_files(files, options.max_queries)
        return collection, _bm25(collection, options.depth), options.depth
    return *_from_run(options, files), options.depth


def _from_run(options: argparse.Namespace, files: Files) -> tuple[Collection, Run]:
    """The candidates of --run, with the documents that it names."""
    from triton_rerank.evaluation.collections import check_documents, load_files, load_queries
    from triton_rerank.evaluation.trec import read_qrels, read_run, top

    queries, _ = load_queries(files.queries, read_qrels(files.qrels), options.max_queries)
    whole = read_run(options.run_file)
    missing = sum(query_id not in whole for query_id in queries)
    if missing == len(queries):
        raise InvalidRequestError(f"{options.run_file}: none of the {missing} judged queries is in the run")
    candidates = {query_id: top(whole.get(query_id, {}), options.depth) for query_id in queries}
    wanted = {doc_id for scores in candidates.values() for doc_id in scores}
    collection = load_files(files, options.max_queries, wanted)
    check_documents(collection.documents, candidates.items(), str(options.run_file))
    if missing:
        print(
            f"triton-rerank: {options.run_file}: {missing} of {len(queries)} judged queries are not in the run; "
            "they have no candidates and count 0",
            file=sys.stderr,
        )
    return collection, candidates


def _bm25(collection: Collection, depth: int | None) -> Run:
    from triton_rerank.evaluation.bm25 import Bm25

    with progress("indexing", len(collection.documents), "documents") as advance:
        index = Bm25(collection.documents, advance)
    found: Run = {}
    with progress("BM25", len(collection.queries), "queries") as advance:
        for query_id, text in collection.queries.items():
            if collection.candidates is not None:
                found[query_id] = index.score(text, collection.candidates[query_id])
            elif depth is None:
                found[query_id] = index.score(text, collection.documents)
            else:
                found[query_id] = index.search(text, depth)
            advance()
    return found
