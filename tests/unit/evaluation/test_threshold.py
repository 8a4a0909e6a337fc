"""The proposed threshold, by hand and against every other threshold."""

import random

import pytest

from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.threshold import best_threshold
from triton_rerank.ranking.relevance import sigmoid


def reranked(query_id, scores):
    return Reranked(query_id, scores, 0.1, 10, 0)


def test_by_hand():
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"c": 2}}
    results = [reranked("q1", {"a": 3.0, "b": 2.0, "unjudged": -1.0}), reranked("q2", {"c": 1.0})]
    # 3 relevant, 2 not, 1 relevant, -1 not. F1: 2/3, 1/2, 4/5, 2/3.
    found = best_threshold(qrels, results)
    assert found.min_relevance_score == sigmoid((1.0 - 1.0) / 2)
    assert found.f1 == pytest.approx(4 / 5)
    assert (found.relevant_kept, found.others_kept) == (1, 1 / 2)
    assert found.sentence() == (
        "min_relevance_score 0.500 separates best (F1 0.800): it keeps 100.0% of the relevant candidates "
        "and 50.0% of the others"
    )


def test_late_interaction_divides_by_its_scale():
    results = [reranked("q", {"a": 24.0, "b": 8.0})]
    assert best_threshold({"q": {"a": 1}}, results, logit_scale=32).min_relevance_score == 0.5


def test_equal_logits_stay_together():
    results = [reranked("q", {"a": 1.0, "b": 1.0, "c": 0.0})]
    found = best_threshold({"q": {"a": 1}}, results)
    assert (found.min_relevance_score, found.others_kept) == (sigmoid(0.5), 1 / 2)


@pytest.mark.parametrize("judged", [{}, {"a": 1, "b": 1}])
def test_nothing_to_separate(judged):
    assert best_threshold({"q": judged}, [reranked("q", {"a": 1.0, "b": 0.0})]) is None


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_has_a_higher_f1(seed):
    random.seed(seed)
    logits = {f"d{number}": float(random.randint(-3, 3)) for number in range(12)}
    qrels = {"q": {name: random.randint(0, 1) for name in logits} | {"d0": 1, "d1": 0}}

    def f1(limit):
        kept = {name for name, logit in logits.items() if sigmoid(logit) >= limit}
        relevant = {name for name, relevance in qrels["q"].items() if relevance}
        return 2 * len(kept & relevant) / (len(kept) + len(relevant))

    found = best_threshold(qrels, [reranked("q", logits)])
    assert found.f1 == pytest.approx(f1(found.min_relevance_score))
    assert found.f1 == pytest.approx(max(f1(sigmoid(logit)) for logit in logits.values()))
