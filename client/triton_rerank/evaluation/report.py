"""What an evaluation found: values for JSON, tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.measures import Difference, Measured, difference, measure
from triton_rerank.evaluation.trec import Qrels, Run, fuse

MOST_CHANGED = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the same queries."""

    first: Measured
    second: Measured
    differences: dict[str, Difference]
    """measure -> second less first."""


def compare(names: Sequence[str], qrels: Qrels, first: Run, second: Run) -> Comparison:
    """Measure two runs and their differences.

    Args:
        names: Measures, from `check_measures`.
        qrels: The queries that count.
        first: The run to improve on.
        second: The run to judge.
    """
    measured = measure(names, qrels, first), measure(names, qrels, second)
    pairs = zip(names, measured[0].per_query.values(), measured[1].per_query.values(), strict=True)
    return Comparison(*measured, {name: difference(before, after) for name, before, after in pairs})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A reranker on a collection."""

    comparison: Comparison
    """First stage and reranked."""
    fused: Measured
    """Reciprocal-rank fusion of both."""
    baseline: Comparison | None
    """Another run and reranked."""
    results: tuple[Reranked, ...]
    depth: int | None
    model: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The means and all that belongs to them, ready for JSON."""
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
            about["reranked_minus_baseline"] = _as_dicts(self.baseline.differences)
        return about | {"num_pairs": self.num_pairs, "num_truncated": self.num_truncated, "query_s": self.query_s()}

    def per_query(self) -> dict[str, Any]:
        """query_id -> its values and time."""
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
        """Pairs that the model scored."""
        return sum(len(reranked.scores) for reranked in self.results)

    @property
    def num_truncated(self) -> int:
        """Pairs of which tokens were cut."""
        return sum(reranked.num_truncated for reranked in self.results)

    def query_s(self) -> dict[str, float]:
        """Seconds of a query's call: mean, median, 95th percentile. Queries under way together share the server."""
        seconds = sorted(reranked.total_s for reranked in self.results)
        return {"mean": fmean(seconds), "median": median(seconds), "p95": seconds[int(0.95 * (len(seconds) - 1))]}

    def table(self) -> str:
        """Everything a reader wants first, in lines."""
        times = self.query_s()
        depth = "all candidates" if self.depth is None else f"depth {self.depth}"
        lines = [
            f"{len(self.results)} queries, {depth}, {self.num_pairs:,} pairs, {self.num_truncated:,} of them truncated",
            *comparison_lines(self.comparison, ("first stage", "reranked"), {"fused": self.fused.mean}),
        ]
        if self.baseline is not None:
            lines += ["", *comparison_lines(self.baseline, ("baseline", "reranked"))]
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
) -> Evaluation:
    """Measure what the reranker made of a first stage.

    Args:
        names: Measures, from `check_measures`.
        qrels: The queries that count.
        first_stage: The run that was reranked.
        results: The model's scores, one for each query.
        baseline: A run to test against besides the first stage.
        depth: Candidates taken for a query; None for all.
        model: What the server says of its model.
    """
    run = {reranked.query_id: reranked.scores for reranked in results}
    return Evaluation(
        comparison=compare(names, qrels, first_stage, run),
        fused=measure(names, qrels, fuse([first_stage, run])),
        baseline=None if baseline is None else compare(names, qrels, baseline, run),
        results=tuple(results),
        depth=depth,
        model=dict(model),
    )


def comparison_lines(
    comparison: Comparison, titles: tuple[str, str], more: Mapping[str, Mapping[str, float]] | None = None
) -> list[str]:
    """A table: one measure a line, both means, their difference and what it is worth.

    Args:
        comparison: What to show.
        titles: Of the two runs.
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
    """The queries that `name` changes most: (query_id, first, second), the largest change first."""
    first, second = comparison.first.per_query[name], comparison.second.per_query[name]
    changed = [query_id for query_id in first if first[query_id] != second[query_id]]
    changed.sort(key=lambda query_id: (-abs(second[query_id] - first[query_id]), query_id))
    return [(query_id, first[query_id], second[query_id]) for query_id in changed[:count]]


def _as_dicts(differences: Mapping[str, Difference]) -> dict[str, Any]:
    return {name: asdict(change) for name, change in differences.items()}
