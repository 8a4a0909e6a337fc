"""Measures of runs by ir_measures (which uses trec_eval's code), and significance tests of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import require
from triton_rerank.evaluation.trec import Qrels, Run, Scores, ranked

NUM_PERMUTATIONS = 10_000
_BLOCK = 100
_SEED = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """The measures of one run."""

    mean: dict[str, float]
    """measure, as ir_measures writes it -> mean over the queries of the qrels; a query without documents counts 0."""
    per_query: dict[str, dict[str, float]]
    """measure -> query_id -> value."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of two runs, query by query."""

    mean: float
    """Mean of the second run minus mean of the first."""
    wins: int
    """Queries in which the second run is better."""
    ties: int
    losses: int
    p_t_test: float
    """Two-sided paired t-test."""
    p_randomization: float
    """Two-sided paired randomization test: share of random signs that give a mean difference as large."""


def default_measures(depth: int | None = None) -> tuple[str, ...]:
    """The measures of an evaluation that names none. Recall is cut at `depth` if that is below 100."""
    return ("nDCG@10", "RR@10", f"R@{min(depth or 100, 100)}", "AP", "Success@1")


def check_measures(names: Sequence[str]) -> list[str]:
    """Normalize names of measures to ir_measures' spelling.

    Raises:
        InvalidRequestError: ir_measures does not know a measure.
        RerankError: The extra `eval` is not installed.
    """
    ir_measures = require("ir_measures")
    checked = []
    for name in names:
        try:
            checked.append(str(ir_measures.parse_measure(name)))
        except (NameError, ValueError, TypeError, KeyError) as error:
            raise InvalidRequestError(
                f"measure {name!r}: {error}; use ir_measures' names, such as nDCG@10, RR@10, R@100, AP, Success@1"
            ) from None
    return list(dict.fromkeys(checked))


def measure(names: Sequence[str], qrels: Qrels, run: Run) -> Measured:
    """Measure a run.

    Args:
        names: From `check_measures`.
        qrels: The queries that count. A query that the run lacks counts 0.
        run: Queries without judgements are ignored.
    """
    ir_measures = require("ir_measures")
    measures = [ir_measures.parse_measure(name) for name in names]
    # Ranks replace scores, because the programs behind ir_measures order equal scores differently.
    judged = {query_id: _by_rank(run.get(query_id, {})) for query_id in qrels}
    found = ir_measures.calc(measures, qrels, judged)
    per_query: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric in found.per_query:
        per_query[str(metric.measure)][metric.query_id] = float(metric.value)
    mean = {name: float(found.aggregated[value]) for name, value in zip(names, measures, strict=True)}
    return Measured(mean, per_query)


def _by_rank(scores: Scores) -> Scores:
    return {doc_id: float(-index) for index, doc_id in enumerate(ranked(scores))}


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference:
    """Compare two runs query by query.

    Args:
        first: query_id -> value.
        second: The same queries.
    """
    deltas = np.array([second[query_id] - value for query_id, value in first.items()])  # [num_queries]
    wins, losses = int((deltas > 0).sum()), int((deltas < 0).sum())
    return Difference(
        mean=float(deltas.mean()),
        wins=wins,
        ties=len(deltas) - wins - losses,
        losses=losses,
        p_t_test=_t_test(deltas),
        p_randomization=_randomization(deltas),
    )


def _t_test(deltas: npt.NDArray[np.float64]) -> float:
    if np.ptp(deltas) == 0:  # the t-test divides by the deviation
        return 1.0 if len(deltas) < 2 or deltas[0] == 0 else 0.0
    stats = require("scipy.stats")
    return float(stats.ttest_1samp(deltas, 0.0).pvalue)


def _randomization(deltas: npt.NDArray[np.float64]) -> float:
    """Fisher's randomization test by sampling (Smucker, Allan and Carterette, CIKM 2007)."""
    generator = np.random.default_rng(_SEED)
    moved = deltas[deltas != 0]
    observed = abs(float(moved.sum()))
    if not len(moved):
        return 1.0
    as_large = 0
    for _ in range(NUM_PERMUTATIONS // _BLOCK):
        signs = generator.integers(0, 2, (_BLOCK, len(moved)), dtype=np.int8) * 2 - 1
        # The tolerance covers the rounding of sums in another order.
        as_large += int((np.abs(signs @ moved) >= observed - 1e-9).sum())
    return (as_large + 1) / (NUM_PERMUTATIONS + 1)
