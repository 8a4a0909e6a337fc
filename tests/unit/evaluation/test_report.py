"""Reports: which queries count, and times."""

import pytest

from triton_rerank import InvalidRequestError
from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.report import compare, evaluate

QRELS = {"q1": {"a": 1}, "q2": {"a": 1}}


def reranked(query_id, scores, total_s=1.0):
    return Reranked(query_id, scores, total_s, 10, 0)


def test_a_run_that_holds_a_query_without_documents_counts_zero():
    compared = compare(["RR@10"], QRELS, {"q1": {"a": 1.0}, "q2": {}}, {"q1": {"a": 1.0}, "q2": {"a": 1.0}})
    assert (compared.first.mean, compared.second.mean) == ({"RR@10": 0.5}, {"RR@10": 1.0})
    assert (compared.num_queries, compared.left_out()) == (2, "")


def test_a_query_that_only_one_run_holds_does_not_count():
    compared = compare(["RR@10"], QRELS, {"q1": {"a": 1.0}, "q2": {"a": 1.0}}, {"q1": {"b": 2.0, "a": 1.0}})
    assert (compared.first.mean, compared.second.mean) == ({"RR@10": 1.0}, {"RR@10": 0.5})
    assert (compared.only_first, compared.only_second, compared.neither) == (1, 0, 0)
    with pytest.raises(InvalidRequestError, match="none of the 2 judged queries in common"):
        compare(["RR@10"], QRELS, {"q1": {"a": 1.0}}, {"q2": {"a": 1.0}})


@pytest.mark.parametrize(("num_queries", "p95"), [(1, 1), (2, 2), (20, 19), (100, 95)])
def test_the_95th_percentile_is_a_nearest_rank(num_queries, p95):
    queries = [f"q{number}" for number in range(1, num_queries + 1)]
    results = [reranked(query, {"a": 1.0}, float(number)) for number, query in enumerate(queries, start=1)]
    qrels = {query: {"a": 1} for query in queries}
    found = evaluate(["RR@10"], qrels, {}, results, baseline=None, depth=None, model={})
    assert found.query_s()["p95"] == p95
    # The first stage lacks every query, and counts 0 for it.
    assert found.summary()["first_stage"] == {"RR@10": 0}
    assert found.summary()["reranked"] == {"RR@10": 1}
