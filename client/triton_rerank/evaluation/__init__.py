"""Evaluation of rerankers: test collections, TREC files, a BM25 first stage, measures, reports.

The names in `__all__` are public. The libraries of the extra `eval` are imported on first use.
"""

from triton_rerank.evaluation.bm25 import Bm25
from triton_rerank.evaluation.collections import Collection, Files, beir_files, load_files, load_reranking
from triton_rerank.evaluation.journal import Journal, Reranked
from triton_rerank.evaluation.lines import Line, read_lines
from triton_rerank.evaluation.measures import Difference, Measured, check_measures, difference, measure
from triton_rerank.evaluation.pool import Pool, pool_of
from triton_rerank.evaluation.report import Evaluation, compare, evaluate
from triton_rerank.evaluation.trec import Qrels, Run, fuse, ranked, read_qrels, read_run, write_run

__all__ = [
    "Bm25",
    "Collection",
    "Difference",
    "Evaluation",
    "Files",
    "Journal",
    "Line",
    "Measured",
    "Pool",
    "Qrels",
    "Reranked",
    "Run",
    "beir_files",
    "check_measures",
    "compare",
    "difference",
    "evaluate",
    "fuse",
    "load_files",
    "load_reranking",
    "measure",
    "pool_of",
    "ranked",
    "read_lines",
    "read_qrels",
    "read_run",
    "write_run",
]
