"""Cascades against the fake server: numbers to keep, faults of each stage, one deadline."""

import logging
import time
from fractions import Fraction

import grpc
import numpy as np
import pytest

import triton_rerank as tr
from support.fake_triton import FakeTriton, hang, refuse
from triton_rerank import Cascade
from triton_rerank.ranking.cascade import number_kept
from triton_rerank.ranking.validation import check_cascade

# The cross-encoder orders by the number; the first stage by the number's last digit.
DOCUMENTS = [str(number) for number in (17, 23, 5, 48, 91, 30)]


def last_digit(document: bytes) -> float:
    return float(document[-1:])


@pytest.fixture
def server():
    with FakeTriton() as running:
        running.first_stage = last_digit
        yield running


def shown(response):
    return [(result.document, result.stage) for result in response]


def asked(server):
    """Model and number of pairs of each inference."""
    return [(request.model_name, request.inputs[0].shape[0]) for request in server.requests]


def test_the_best_of_the_first_stage_are_scored_again_and_the_others_follow(client, server):
    response = client.rerank("q", DOCUMENTS, cascade=3)
    assert shown(response) == [
        *((document, "reranker") for document in ("48", "17", "5")),
        *((document, "late_interaction") for document in ("23", "91", "30")),
    ]
    assert asked(server) == [("late_interaction", 6), ("reranker", 3)]
    assert [result.rank for result in response] == [1, 2, 3, 4, 5, 6]
    assert [result.logit for result in response] == [48, 17, 5, 3, 1, 0]
    assert [result.relevance_score for result in response][3:] == [3 / 32, 1 / 32, 0]
    assert [stage.model for stage in response.stages] == ["late_interaction", "reranker"]
    assert [(stage.usage.num_documents, stage.usage.num_pairs) for stage in response.stages] == [(6, 6), (3, 3)]
    assert response.usage == tr.Usage(6, 9, sum(stage.usage.num_tokens for stage in response.stages), 0)
    assert response.timing.num_requests == sum(stage.timing.num_requests for stage in response.stages) == 2
    assert sum(stage.timing.total_s for stage in response.stages) <= response.timing.total_s


@pytest.mark.parametrize("keep", [6, 7, 10_000, 1.0])
def test_a_cascade_that_keeps_all_leaves_out_the_first_stage(client, server, keep):
    alone = client.rerank("q", DOCUMENTS)
    assert client.rerank("q", DOCUMENTS, cascade=keep).results == alone.results
    assert asked(server) == [("reranker", 6)] * 2
    assert {result.stage for result in alone} == {"reranker"}
    assert [stage.usage for stage in alone.stages] == [alone.usage]


def test_no_documents_need_no_server(client, server):
    assert client.rerank("q", [], cascade=1).stages == ()
    assert not server.requests


@pytest.mark.parametrize("top_n", [1, 3, 4, 6, 9])
def test_top_n_counts_both_stages(client, top_n):
    whole = client.rerank("q", DOCUMENTS, cascade=3).results
    assert client.rerank("q", DOCUMENTS, cascade=3, top_n=top_n).results == whole[:top_n]


def test_a_least_relevance_score_leaves_out_what_only_the_first_stage_scored(client):
    documents = ["3", "-2", "8", "0.1", "-0.9"]
    found = client.rerank("q", documents, cascade=4, min_relevance_score=0.5)
    assert shown(found) == [("8", "reranker"), ("3", "reranker")]


def test_equal_scores_of_the_first_stage_keep_the_callers_order(client):
    response = client.rerank("q", ["12", "22", "22", "2", "32"], cascade=3)
    assert [(result.index, result.stage) for result in response] == [
        (1, "reranker"),
        (2, "reranker"),
        (0, "reranker"),
        (3, "late_interaction"),
        (4, "late_interaction"),
    ]


def test_lengths_and_priority_are_for_the_second_stage(client, server):
    client.rerank("q", DOCUMENTS, cascade=3, max_length=100, query_max_length=20, priority=1)
    about = [request for request in server.requests if request.model_name != "tokenizer"]
    names = ("max_length", "query_max_length", "priority_level")
    assert [[request.parameters[name].int64_param for name in names] for request in about] == [[0, 0, 0], [100, 20, 2]]


def test_a_document_that_either_stage_truncates_is_counted_once(client, server):
    server.max_tokens = 3
    response = client.rerank("q", ["1", "12349", "12348", "12347"], cascade=2)
    assert response.usage.num_truncated == 3
    assert [stage.usage.num_truncated for stage in response.stages] == [3, 2]
    assert [result.truncated for result in response] == [True, True, True, False]


def test_many_searches(client):
    searches = [("q", DOCUMENTS), ("q", ["1"]), ("q", [])]
    several = client.rerank_many(searches, cascade=3)
    assert [response.results for response in several] == [client.rerank(*s, cascade=3).results for s in searches]


def test_a_first_stage_that_is_not_served_is_named(client, server):
    with pytest.raises(tr.ModelNotFoundError, match=r"^colbert, the first stage: .*unknown model.*the server has: "):
        client.rerank("q", DOCUMENTS, cascade=Cascade(3, first="colbert"))
    assert not server.requests


def test_the_second_stage_may_be_the_missing_one(client_class, server):
    with (
        client_class(server.url, "nosuch") as client,
        pytest.raises(tr.ModelNotFoundError, match=r"^nosuch, the second stage: "),
    ):
        client.rerank("q", DOCUMENTS, cascade=Cascade(3, fallback=True))
    assert asked(server) == [("late_interaction", 6)]


FAILURES = {
    "missing": ("nosuch", None, "ModelNotFoundError"),
    "failing": ("late_interaction", refuse(grpc.StatusCode.INTERNAL, "it broke"), "InferenceError"),
    "refusing": ("late_interaction", refuse(grpc.StatusCode.INVALID_ARGUMENT, "no"), "InvalidRequestError"),
    "hanging": ("late_interaction", hang(20), "RequestTimeoutError"),
}


@pytest.mark.parametrize("failure", sorted(FAILURES))
def test_with_a_fallback_the_model_scores_all_documents(client, server, failure, caplog):
    first, fault, error = FAILURES[failure]
    server.faults.extend([fault] if fault else [])
    with caplog.at_level(logging.WARNING, "triton_rerank"):
        response = client.rerank("q", DOCUMENTS, cascade=Cascade(3, first, fallback=True), timeout=2)
    assert response.results == client.rerank("q", DOCUMENTS).results
    assert [stage.model for stage in response.stages] == ["reranker"]
    assert response.usage.num_pairs == 6
    assert [record.getMessage().startswith(f"{error}: {first}, the first stage: ") for record in caplog.records] == [
        True
    ]


@pytest.mark.parametrize("failure", ["failing", "refusing"])
def test_without_a_fallback_the_first_stages_error_is_the_calls(client, server, failure):
    _, fault, error = FAILURES[failure]
    server.faults.append(fault)
    with pytest.raises(getattr(tr, error), match=r"^late_interaction, the first stage: "):
        client.rerank("q", DOCUMENTS, cascade=3)
    assert asked(server) == [("late_interaction", 6)]


def test_one_deadline_covers_both_stages(client, server):
    server.faults.extend([hang(0.5), hang(20)])
    with pytest.raises(tr.RequestTimeoutError, match=r"^reranker, the second stage: 0 of 1 requests"):
        client.rerank("q", DOCUMENTS, cascade=3, timeout=1.5)
    first, second = server.timeouts
    assert second < first - 0.4  # of the same 1.5 s


class SlowBetweenStages(logging.Handler):
    """A handler of the application that is slow when the client has prepared the second stage's request."""

    def __init__(self, wait_s):
        super().__init__()
        self._wait_s, self._seen = wait_s, 0

    def emit(self, record):
        self._seen += record.msg.startswith("cut into")
        if self._seen == 2:
            time.sleep(self._wait_s)


@pytest.mark.slow
def test_a_deadline_that_passes_between_the_stages(client, server):
    client.rerank("q", DOCUMENTS, cascade=3)  # the configurations are known from here on
    server.requests.clear()
    logger, handler = logging.getLogger("triton_rerank"), SlowBetweenStages(1.6)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(tr.RequestTimeoutError, match=r"^reranker, the second stage: 0 of 1 requests"):
            client.rerank("q", DOCUMENTS, cascade=3, timeout=1.5)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert asked(server) == [("late_interaction", 6)]


def test_an_overloaded_second_stage_refuses_before_it_computes(client_class, server):
    """The first stage's answer does not admit the call to the second stage's queue."""
    documents = [str(number) for number in range(200)]
    with client_class(server.url, pairs_per_request=20, max_retries=0) as client:
        server.faults.extend([None] * 10 + [refuse(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")])
        with pytest.raises(tr.ServerOverloadedError, match=r"^reranker, the second stage: "):
            client.rerank("q", documents, cascade=100)
    assert [model for model, _ in asked(server)] == ["late_interaction"] * 10 + ["reranker"]


def test_times_of_the_first_stage_say_nothing_of_the_second():
    with tr.RerankClient("localhost:1") as client:
        assert client._target("reranker").servers is not client._target("late_interaction").servers
        assert client._target("reranker") is client._target("reranker")


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, 20.0, float("nan"), True, "3", [3], Cascade(0), Cascade("all")])
def test_a_number_to_keep_is_an_int_from_1_or_a_share(client, server, keep):
    with pytest.raises(
        tr.InvalidRequestError, match=r"^cascade keeps .*; pass a number of documents from 1 on, a share"
    ):
        client.rerank("q", DOCUMENTS, cascade=keep)
    assert not server.requests


@pytest.mark.parametrize(
    ("cascade", "message"),
    [
        (Cascade(3, first=""), "cascade.first is not a name"),
        (Cascade(3, first=None), r"cascade.first is not a name \(got None\)"),
        (Cascade(3, first="reranker"), "cascade.first is 'reranker', which is the client's own model"),
        (Cascade(3, fallback="yes"), "cascade.fallback is str; pass True or False"),
    ],
)
def test_a_cascade_needs_usable_settings(client, cascade, message):
    with pytest.raises(tr.InvalidRequestError, match=message):
        client.rerank("q", DOCUMENTS, cascade=cascade)


@pytest.mark.parametrize(
    ("keep", "count", "kept"),
    [
        (100, 1000, 100),
        (100, 5, 100),
        (0.1, 1000, 100),
        (0.1, 5, 1),
        (0.07, 100, 7),
        (0.25, 10, 3),
        (1.0, 7, 7),
        (1e-9, 10_000, 1),
    ],
)
def test_a_share_is_rounded_up(keep, count, kept):
    assert number_kept(check_cascade(keep).keep, count) == kept


def test_numbers_of_numpy_and_fractions_count():
    assert check_cascade(np.int64(7)) == Cascade(7)
    assert check_cascade(np.float32(0.5)) == check_cascade(Fraction(1, 2)) == Cascade(0.5)
