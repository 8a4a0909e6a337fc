"""Measures of runs by ir_measures (trec_eval's code underneath), and what their differences are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.extras import require
from triton_rerank.evaluation.trec import Qrels, Run, Scores, ranked

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100", "AP", "Success@1")
NUM_PERMUTATIONS = 10_000
_BLOCK = 100
_SEED = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of one run."""

    mean: dict[str, float]
    """measure, as ir_measures writes it -> mean over all judged queries; one without documents counts 0."""
    per_query: dict[str, dict[str, float]]
    """measure -> query_id -> value."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of two runs, query by query."""

    mean: float
    """Mean of the second run less mean of the first."""
    wins: int
    """Queries where the second run is better."""
    ties: int
    losses: int
    p_t_test: float
    """Two-sided paired t-test."""
    p_randomization: float
    """Two-sided paired randomization test: how often random signs give a mean difference as large."""


def check_measures(names: Sequence[str]) -> list[str]:
    """Names of measures as ir_measures writes them.

    Raises:
        InvalidRequestError: ir_measures knows no such measure.
        RerankError: The extra `eval` is not installed.
    """
    ir_measures = require("ir_measures")
    checked = []
    for name in names:
        try:
            checked.append(str(ir_measures.parse_measure(name)))
        except (NameError, ValueError, TypeError, KeyError) as error:
            raise InvalidRequestError(
                f"measure {name!r}: {error}; write it as ir_measures does, such as nDCG@10, RR@10, R@100, AP, Success@1"
            ) from None
    return list(dict.fromkeys(checked))


def measure(names: Sequence[str], qrels: Qrels, run: Run) -> Measured:
    """Measure a run.

    Args:
        names: From `check_measures`.
        qrels: Every query of it counts, one that the run lacks with 0.
        run: Queries that are not judged are passed over.
    """
    ir_measures = require("ir_measures")
    measures = [ir_measures.parse_measure(name) for name in names]
    # Places instead of scores: the programs behind ir_measures order equal scores each in its own way.
    judged = {query_id: _places(run.get(query_id, {})) for query_id in qrels}
    found = ir_measures.calc(measures, qrels, judged)
    per_query: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric in found.per_query:
        per_query[str(metric.measure)][metric.query_id] = float(metric.value)
    mean = {name: float(found.aggregated[value]) for name, value in zip(names, measures, strict=True)}
    return Measured(mean, per_query)


def _places(scores: Scores) -> Scores:
    return {doc_id: float(-place) for place, doc_id in enumerate(ranked(scores))}


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference:
    """How `second` differs from `first`, query by query.

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
    if np.ptp(deltas) == 0:  # the test divides by the deviation
        return 1.0 if len(deltas) < 2 or deltas[0] == 0 else 0.0
    stats = require("scipy.stats")
    return float(stats.ttest_1samp(deltas, 0.0).pvalue)


def _randomization(deltas: npt.NDArray[np.float64]) -> float:
    """Fisher's test by sampling, as Smucker, Allan and Carterette describe it (CIKM 2007)."""
    generator = np.random.default_rng(_SEED)
    moved = deltas[deltas != 0]
    observed = abs(float(moved.sum()))
    if not len(moved):
        return 1.0
    as_large = 0
    for _ in range(NUM_PERMUTATIONS // _BLOCK):
        signs = generator.integers(0, 2, (_BLOCK, len(moved)), dtype=np.int8) * 2 - 1
        # Sums in another order differ in the last digits.
        as_large += int((np.abs(signs @ moved) >= observed - 1e-9).sum())
    return (as_large + 1) / (NUM_PERMUTATIONS + 1)
