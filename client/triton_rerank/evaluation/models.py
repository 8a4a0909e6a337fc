"""Several models and their cascades on the same candidates: measures, fusion, and tests of the differences."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from triton_rerank.evaluation.collections import Collection
from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.measures import Measured, measure
from triton_rerank.evaluation.pool import Pool, pool_of
from triton_rerank.evaluation.report import Comparison, compare, comparison_lines
from triton_rerank.evaluation.trec import Run, fuse

FIRST_STAGE, FUSED = "first stage", "fused"


@dataclass(frozen=True, slots=True)
class System:
    """Results of one model, or of a cascade."""

    model: Mapping[str, Any]
    """Fields of `ModelInfo`."""
    measured: Measured
    results: tuple[Reranked, ...]

    def fields(self) -> dict[str, Any]:
        """Means, times and counts, ready for JSON."""
        seconds = sorted(reranked.total_s for reranked in self.results)
        return {
            "mean": self.measured.mean,
            "model": dict(self.model),
            "num_truncated": sum(reranked.num_truncated for reranked in self.results),
            "query_s": {
                "mean": fmean(seconds),
                "median": median(seconds),
                "first_stage": fmean(reranked.first_s for reranked in self.results),
            },
            "pairs_per_query": fmean(reranked.num_pairs or len(reranked.scores) for reranked in self.results),
            "pairs_per_s": sum(len(reranked.scores) for reranked in self.results) / max(1e-9, sum(seconds)),
        }


@dataclass(frozen=True, slots=True)
class ModelsEvaluation:
    """Results of several models on one collection."""

    pool: Pool
    depth: int | None
    first_stage: Measured
    systems: dict[str, System]
    fused: Measured
    """Reciprocal-rank fusion of the models, without the first stage."""
    against_first: dict[str, Comparison]
    """Each further model compared with the first one."""

    def summary(self) -> dict[str, Any]:
        """All results except the values of single queries, ready for JSON."""
        first = next(iter(self.systems))
        return {
            "num_queries": len(self.systems[first].results),
            "depth": self.depth,
            "pool": asdict(self.pool),
            "systems": {
                FIRST_STAGE: {"mean": self.first_stage.mean},
                **{name: system.fields() for name, system in self.systems.items()},
                FUSED: {"mean": self.fused.mean},
            },
            "differences": {
                f"{name} less {first}": {measure: asdict(change) for measure, change in found.differences.items()}
                for name, found in self.against_first.items()
            },
        }

    def table(self) -> str:
        """A table with a row per system, then the differences between models."""
        summary = self.summary()
        names = list(self.first_stage.mean)
        width = max(map(len, summary["systems"]))
        lines = [
            f"{summary['num_queries']} queries; {self.pool.sentence()}",
            f"{'':{width}}  {'  '.join(f'{name:>9}' for name in names)}  ms/query  pairs/s  pairs/query",
        ]
        for name, fields in summary["systems"].items():
            means = "  ".join(f"{fields['mean'][measure]:9.4f}" for measure in names)
            times = _times(fields) if "query_s" in fields else ""
            lines.append(f"{name:{width}}  {means}{times}")
        first = next(iter(self.systems))
        for name, found in self.against_first.items():
            lines += ["", *comparison_lines(found, (first, name))]
        return "\n".join(lines)


def _times(fields: Mapping[str, Any]) -> str:
    milliseconds = fields["query_s"]["mean"] * 1e3
    return f"  {milliseconds:8.0f}  {fields['pairs_per_s']:7.0f}  {fields['pairs_per_query']:11.0f}"


def evaluate_models(
    names: Sequence[str],
    collection: Collection,
    first_stage: Run,
    results: Mapping[str, tuple[Mapping[str, Any], Sequence[Reranked]]],
    depth: int | None,
    cascades: Container[str] = (),
) -> ModelsEvaluation:
    """Measure several models on the same first stage.

    Args:
        names: Measures, from `check_measures`.
        collection: Queries, documents and judgements.
        first_stage: The candidates.
        results: model -> fields of its `ModelInfo`, and its scores.
        depth: Candidates per query; None for all.
        cascades: Names of the results that are cascades of the models; the fusion is of the models alone.
    """
    runs = {name: {reranked.query_id: reranked.scores for reranked in found} for name, (_, found) in results.items()}
    first, *others = runs
    return ModelsEvaluation(
        pool=pool_of(collection, first_stage),
        depth=depth,
        first_stage=measure(names, collection.qrels, first_stage),
        systems={
            name: System(about, measure(names, collection.qrels, runs[name]), tuple(found))
            for name, (about, found) in results.items()
        },
        fused=measure(names, collection.qrels, fuse([run for name, run in runs.items() if name not in cascades])),
        against_first={name: compare(names, collection.qrels, runs[first], runs[name]) for name in others},
    )
