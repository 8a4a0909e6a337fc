"""The results of an evaluation, as values for JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import fmean, median
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.measures import Difference, Measured, difference, measure
from triton_rerank.evaluation.pool import Pool
from triton_rerank.evaluation.threshold import Threshold, best_threshold
from triton_rerank.evaluation.trec import Qrels, Run, fuse
from triton_rerank.types import ModelInfo

MOST_CHANGED = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the judged queries that both hold."""

    first: Measured
    second: Measured
    differences: dict[str, Difference]
    """measure -> second minus first."""
    only_first: int = 0
    """Judged queries that are not counted, because only the first run holds them."""
    only_second: int = 0
    neither: int = 0

    @property
    def num_queries(self) -> int:
        """Queries that both runs hold."""
        return len(next(iter(self.first.per_query.values())))

    def left_out(self) -> str:
        """Describe the judged queries that are not counted; empty if there are none."""
        parts = []
        if single := self.only_first + self.only_second:
            parts.append(f"{single} in one run only ({self.only_first} in the first, {self.only_second} in the second)")
        if self.neither:
            parts.append(f"{self.neither} in neither run")
        return f"judged queries that are not counted: {'; '.join(parts)}" if parts else ""


def compare(names: Sequence[str], qrels: Qrels, first: Run, second: Run) -> Comparison:
    """Measure two runs, and their differences, on the judged queries that both runs hold.

    A query that a run lacks is not a query with a bad ranking: the run may be that of a sample. A run that holds a
    query without documents has an empty mapping for it, which counts 0.

    Args:
        names: Measures, from `check_measures`.
        qrels: Judgements.
        first: The run to improve on.
        second: The run to judge.

    Raises:
        InvalidRequestError: The runs have no judged query in common.
    """
    shared = {query_id: judged for query_id, judged in qrels.items() if query_id in first and query_id in second}
    if not shared:
        raise InvalidRequestError(
            f"the two runs have none of the {len(qrels)} judged queries in common; use runs of the same collection"
        )
    measured = measure(names, shared, first), measure(names, shared, second)
    pairs = zip(names, measured[0].per_query.values(), measured[1].per_query.values(), strict=True)
    return Comparison(
        *measured,
        {name: difference(before, after) for name, before, after in pairs},
        only_first=sum(query_id in first and query_id not in second for query_id in qrels),
        only_second=sum(query_id in second and query_id not in first for query_id in qrels),
        neither=sum(query_id not in first and query_id not in second for query_id in qrels),
    )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of one model on a collection."""

    comparison: Comparison
    """First stage and reranked."""
    fused: Measured
    """Reciprocal-rank fusion of both."""
    baseline: Comparison | None
    """The baseline run and reranked, on the queries that the baseline holds."""
    results: tuple[Reranked, ...]
    depth: int | None
    model: dict[str, Any]
    pool: Pool | None = None
    threshold: Threshold | None = None

    def summary(self) -> dict[str, Any]:
        """All results except the values of single queries, ready for JSON."""
        about: dict[str, Any] = {
            "num_queries": len(self.results),
            "depth": self.depth,
            "model": self.model,
            "first_stage": self.comparison.first.mean,
            "reranked": self.comparison.second.mean,
            "fused": self.fused.mean,
            "reranked_minus_first_stage": _as_dicts(self.comparison.differences),
        }
        if self.baseline is not None:
            about["baseline"] = self.baseline.first.mean
            about["baseline_num_queries"] = self.baseline.num_queries
            about["reranked_minus_baseline"] = _as_dicts(self.baseline.differences)
        if self.pool is not None:
            about["pool"] = asdict(self.pool)
        if self.threshold is not None:
            about["threshold"] = asdict(self.threshold)
        return about | {"num_pairs": self.num_pairs, "num_truncated": self.num_truncated, "query_s": self.query_s()}

    def per_query(self) -> dict[str, Any]:
        """query_id -> its measures, number of documents and seconds."""
        first, second = self.comparison.first.per_query, self.comparison.second.per_query
        return {
            reranked.query_id: {
                "first_stage": {name: values[reranked.query_id] for name, values in first.items()},
                "reranked": {name: values[reranked.query_id] for name, values in second.items()},
                "num_documents": len(reranked.scores),
                "total_s": reranked.total_s,
            }
            for reranked in self.results
        }

    @property
    def num_pairs(self) -> int:
        """Pairs scored by the model."""
        return sum(len(reranked.scores) for reranked in self.results)

    @property
    def num_truncated(self) -> int:
        """Pairs that were truncated."""
        return sum(reranked.num_truncated for reranked in self.results)

    def query_s(self) -> dict[str, float]:
        """Seconds of a query's call: mean, median, 95th percentile (nearest rank).

        Queries in flight at the same time share the server.
        """
        seconds = sorted(reranked.total_s for reranked in self.results)
        return {"mean": fmean(seconds), "median": median(seconds), "p95": seconds[ceil(0.95 * len(seconds)) - 1]}

    def table(self) -> str:
        """The report, as printed."""
        times = self.query_s()
        depth = "all candidates" if self.depth is None else f"depth {self.depth}"
        lines = [
            f"{len(self.results)} queries, {depth}, {self.num_pairs:,} pairs, {self.num_truncated:,} of them truncated",
            *([self.pool.sentence()] if self.pool else ()),
            *comparison_lines(self.comparison, ("first stage", "reranked"), {"fused": self.fused.mean}),
        ]
        if self.baseline is not None:
            lines += ["", f"baseline, {self.baseline.num_queries} queries"]
            lines += comparison_lines(self.baseline, ("baseline", "reranked"))
        if self.threshold is not None:
            lines.append(self.threshold.sentence())
        milliseconds = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in times.items())
        return "\n".join([*lines, f"milliseconds of a query's call: {milliseconds}"])


def evaluate(
    names: Sequence[str],
    qrels: Qrels,
    first_stage: Run,
    results: Sequence[Reranked],
    *,
    baseline: Run | None,
    depth: int | None,
    model: Mapping[str, Any],
    pool: Pool | None = None,
    logit_scale: float | None = None,
) -> Evaluation:
    """Measure a first stage and its reranked order.

    Args:
        names: Measures, from `check_measures`.
        qrels: The queries that count.
        first_stage: The run that was reranked. A query that it lacks counts 0.
        results: The model's scores, one entry per query.
        baseline: A further run to compare with.
        depth: Candidates per query; None for all.
        model: Fields of `ModelInfo`, for the record.
        pool: From `pool_of`, for the record.
        logit_scale: `ModelInfo.logit_scale`.

    Raises:
        InvalidRequestError: The baseline holds none of the judged queries.
    """
    run = {reranked.query_id: reranked.scores for reranked in results}
    first_stage = {query_id: first_stage.get(query_id, {}) for query_id in qrels}
    return Evaluation(
        comparison=compare(names, qrels, first_stage, run),
        fused=measure(names, qrels, fuse([first_stage, run])),
        baseline=None if baseline is None else compare(names, qrels, baseline, run),
        results=tuple(results),
        depth=depth,
        model=dict(model),
        pool=pool,
        threshold=best_threshold(qrels, results, logit_scale),
    )


def model_fields(info: ModelInfo) -> dict[str, Any]:
    """What an evaluation records of the served model."""
    return {name: getattr(info, name) for name in ("model", "checkpoint", "revision", "precision", "runtime")}


def comparison_lines(
    comparison: Comparison, titles: tuple[str, str], more: Mapping[str, Mapping[str, float]] | None = None
) -> list[str]:
    """A table with a line per measure: both means, their difference and its tests.

    Args:
        comparison: The two runs.
        titles: Column titles of the two runs.
        more: title -> measure -> mean, for further columns.
    """
    more = more or {}
    widths = [max(11, len(title)) for title in (*titles, *more)]
    names = [f"{title:>{width}}" for title, width in zip((*titles, *more), widths, strict=True)]
    lines = [f"{'measure':12}{'  '.join(names)}  difference  wins/ties/losses  p t-test  p random."]
    for name, change in comparison.differences.items():
        means = [comparison.first.mean[name], comparison.second.mean[name], *(means[name] for means in more.values())]
        shown = "  ".join(f"{mean:>{width}.4f}" for mean, width in zip(means, widths, strict=True))
        counts = f"{change.wins}/{change.ties}/{change.losses}"
        lines.append(
            f"{name:12}{shown}  {change.mean:>+10.4f}  {counts:>16}  {change.p_t_test:>8.2g}"
            f"  {change.p_randomization:>9.2g}"
        )
    return lines


def most_changed(comparison: Comparison, name: str, count: int = MOST_CHANGED) -> list[tuple[str, float, float]]:
    """The queries whose measure `name` changes most: (query_id, first, second), the largest change first."""
    first, second = comparison.first.per_query[name], comparison.second.per_query[name]
    changed = [query_id for query_id in first if first[query_id] != second[query_id]]
    changed.sort(key=lambda query_id: (-abs(second[query_id] - first[query_id]), query_id))
    return [(query_id, first[query_id], second[query_id]) for query_id in changed[:count]]


def _as_dicts(differences: Mapping[str, Difference]) -> dict[str, Any]:
    return {name: asdict(change) for name, change in differences.items()}
