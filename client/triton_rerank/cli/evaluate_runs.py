"""`triton-rerank eval --compare`: two runs on the queries that both hold."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from triton_rerank.errors import InvalidRequestError

if TYPE_CHECKING:
    from triton_rerank.evaluation.report import Comparison
    from triton_rerank.evaluation.trec import Qrels


def run_compare(options: argparse.Namespace) -> int:
    """Compare two runs. Needs no server."""
    from triton_rerank.cli.output import shorten
    from triton_rerank.evaluation.report import compare, comparison_lines, most_changed
    from triton_rerank.evaluation.trec import read_run

    texts, qrels = _judged(options)
    first, second = options.compare
    comparison = compare(options.measures, qrels, read_run(first), read_run(second))
    if left_out := comparison.left_out():
        print(f"triton-rerank: {left_out}", file=sys.stderr)
    name = options.measures[0]
    changed = most_changed(comparison, name)
    if options.json:
        print(json.dumps(_compared_fields(options, comparison, changed), ensure_ascii=False, indent=2))
        return 0
    titles = [f"{comparison.num_queries} queries in both runs", f"first:  {first}", f"second: {second}"]
    print("\n".join([*titles, *comparison_lines(comparison, ("first", "second"))]))
    print(f"\nthe queries that change most by {name}:")
    for query_id, before, after in changed:
        print(f"{before:8.4f} -> {after:.4f}  {query_id}  {shorten(texts.get(query_id, ''), 80)}")
    return 0


def _judged(options: argparse.Namespace) -> tuple[dict[str, str], Qrels]:
    """Texts of the queries, if they are given, and judgements."""
    from triton_rerank.evaluation.collections import beir_files, load_queries, load_reranking, read_queries
    from triton_rerank.evaluation.trec import read_qrels

    if options.reranking:
        collection = load_reranking(options.reranking, options.max_queries)
        return collection.queries, collection.qrels
    files = beir_files(options.beir, options.split) if options.beir else None
    qrels_path, queries_path = (files.qrels, files.queries) if files else (options.qrels, options.queries)
    if qrels_path is None:
        raise InvalidRequestError("--compare needs judgements: give --beir DIR, --qrels FILE or --reranking FILE")
    qrels = read_qrels(qrels_path)
    if queries_path is None:
        return {}, qrels
    if options.max_queries:
        return load_queries(queries_path, qrels, options.max_queries)
    return read_queries(queries_path), qrels


def _compared_fields(
    options: argparse.Namespace, comparison: Comparison, changed: list[tuple[str, float, float]]
) -> dict[str, Any]:
    return {
        "runs": [str(path) for path in options.compare],
        "num_queries": comparison.num_queries,
        "num_only_first": comparison.only_first,
        "num_only_second": comparison.only_second,
        "num_neither": comparison.neither,
        "first": comparison.first.mean,
        "second": comparison.second.mean,
        "second_minus_first": {measure: asdict(change) for measure, change in comparison.differences.items()},
        "most_changed": [{"query_id": query_id, "first": a, "second": b} for query_id, a, b in changed],
    }
