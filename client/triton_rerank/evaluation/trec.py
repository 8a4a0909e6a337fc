"""TREC files: runs (the documents that a system returned) and qrels (relevance judgements)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import replacing
from triton_rerank.evaluation.lines import Line, read_lines

Scores = dict[str, float]
"""doc_id -> score, the higher the better."""
Run = dict[str, Scores]
"""query_id -> its scores."""
Qrels = dict[str, dict[str, int]]
"""query_id -> doc_id -> relevance; above 0 means relevant."""

RRF_K = 60
"""The constant of reciprocal-rank fusion, as in Cormack, Clarke and Büttcher, SIGIR 2009."""


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first, in trec_eval's order: by score, then by id, both descending."""
    return sorted(scores, key=lambda doc_id: (scores[doc_id], doc_id), reverse=True)


def top(scores: Mapping[str, float], depth: int | None) -> Scores:
    """The best `depth` documents; all of them if None."""
    return {doc_id: scores[doc_id] for doc_id in ranked(scores)[:depth]}


def fuse(runs: Sequence[Run]) -> Run:
    """Reciprocal-rank fusion: a document's score is the sum of 1 / (60 + rank) over the runs that return it."""
    fused: Run = {}
    for run in runs:
        for query_id, scores in run.items():
            sums = fused.setdefault(query_id, {})
            for rank, doc_id in enumerate(ranked(scores), start=1):
                sums[doc_id] = sums.get(doc_id, 0.0) + 1 / (RRF_K + rank)
    return fused


def read_run(path: Path) -> Run:
    """Read a run: TREC's six columns (query Q0 document rank score tag) or MS MARCO's three (query document rank).

    In six columns the score defines the order and the rank is ignored, as in trec_eval.

    Raises:
        InvalidRequestError: A line has neither format, or repeats a document; the message names file and line.
    """
    run: Run = {}
    for line in read_lines(path):
        query_id, doc_id, score = _run_columns(line)
        scores = run.setdefault(query_id, {})
        if doc_id in scores:
            raise line.error(f"document {doc_id} occurs a second time for query {query_id}")
        scores[doc_id] = score
    if not run:
        raise InvalidRequestError(f"{path}: the file has no lines")
    return run


def _run_columns(line: Line) -> tuple[str, str, float]:
    columns = line.text.split()
    if len(columns) not in (3, 6):
        raise line.error(
            f"{len(columns)} columns; a run has 6 (query Q0 document rank score tag) or 3 (query document rank)"
        )
    try:
        if len(columns) == 6:
            score = float(columns[4])
            if math.isfinite(score):
                return columns[0], columns[2], score
        elif (rank := int(columns[2])) > 0:
            return columns[0], columns[1], 1 / rank
    except ValueError:
        pass
    what, value = ("score", columns[4]) if len(columns) == 6 else ("rank", columns[2])
    raise line.error(f"{what} is {value!r}; expected a {'number' if what == 'score' else 'whole number from 1 on'}")


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write TREC's six columns, ranks from 1. The file is replaced as a whole."""
    with replacing(path) as file:
        for query_id, scores in run.items():
            for rank, doc_id in enumerate(ranked(scores), start=1):
                file.write(f"{query_id} Q0 {doc_id} {rank} {scores[doc_id]:.9g} {tag}\n")


def read_qrels(path: Path) -> Qrels:
    """Read judgements: TREC's four columns (query 0 document relevance) or BEIR's three (query document relevance).

    BEIR's header line is skipped.

    Raises:
        InvalidRequestError: A line has neither format; the message names file and line.
    """
    qrels: Qrels = {}
    for line in read_lines(path):
        columns = line.text.split()
        if len(columns) not in (3, 4):
            raise line.error(
                f"{len(columns)} columns; qrels have 4 (query 0 document relevance) or 3 (query document relevance)"
            )
        try:
            relevance = int(columns[-1])
        except ValueError:
            if line.number == 1 and len(columns) == 3:  # the header: query-id, corpus-id, score
                continue
            raise line.error(f"relevance is {columns[-1]!r}; expected a whole number") from None
        qrels.setdefault(columns[0], {})[columns[-2]] = relevance
    if not qrels:
        raise InvalidRequestError(f"{path}: the file has no judgements")
    return qrels
