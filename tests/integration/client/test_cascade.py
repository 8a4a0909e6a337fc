"""Cascades through the real server: the order follows from what each model says alone."""

import pytest

import triton_rerank as tr
from support.tiny_late import DOCUMENTS, QUERIES

pytestmark = pytest.mark.integration

QUERY = QUERIES[0]
# Short, long, empty, over-long, punctuation only, other scripts; then each again.
MIXED = [*DOCUMENTS, "blue " * 30, "why is the mountain", *DOCUMENTS]


@pytest.fixture
def client(client_class, both_server):
    with client_class(both_server.grpc_url, timeout=120) as made:
        yield made


@pytest.fixture
def late(both_server):
    with tr.RerankClient(both_server.grpc_url, "late_interaction", timeout=120) as made:
        yield made


def by_score(scores):
    """Indices by descending score; equal scores in the caller's order."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


@pytest.mark.parametrize("keep", [1, 3, 0.5, 13, 14, 99])
def test_the_order_is_that_of_each_model_alone(client, late, keep):
    first = late.score([(QUERY, text) for text in MIXED], normalize=False)
    second = client.score([(QUERY, text) for text in MIXED], normalize=False)
    kept = by_score(first)[: keep if isinstance(keep, int) else int(keep * len(MIXED))]
    expected = sorted(kept, key=lambda index: (-round(second[index], 4), index))
    rest = [index for index in by_score(first) if index not in kept]
    response = client.rerank(QUERY, MIXED, cascade=keep)
    assert [result.index for result in response] == expected + rest
    assert [result.stage for result in response] == ["reranker"] * len(expected) + ["late_interaction"] * len(rest)
    logits = [second[index] for index in expected] + [first[index] for index in rest]
    assert [result.logit for result in response] == pytest.approx(logits, abs=1e-4)
    for result in response[len(expected) :]:
        assert result.relevance_score == max(0.0, result.logit / 32)


def test_each_stage_tells_its_own_tokens_and_truncation(client, late):
    alone = {result.index: result for result in late.rerank(QUERY, MIXED)}
    response = client.rerank(QUERY, MIXED, cascade=4)
    for result in response[4:]:
        assert (result.num_tokens, result.truncated) == (alone[result.index].num_tokens, alone[result.index].truncated)
    first, second = response.stages
    assert first.usage == late.rerank(QUERY, MIXED).usage
    assert second.usage.num_tokens == sum(result.num_tokens for result in response[:4])
    assert response.usage.num_pairs == len(MIXED) + 4
    truncated = {result.index for result in alone.values() if result.truncated}
    assert response.usage.num_truncated == len(truncated | {r.index for r in response[:4] if r.truncated})


def test_long_documents_are_scored_in_parts_by_both_stages(client, late):
    documents = ["why is the sky blue", *["of a train to the mountain " * 20] * 2]
    response = client.rerank(QUERY, documents, cascade=1, long_documents="chunk")
    assert [result.stage for result in response] == ["reranker", "late_interaction", "late_interaction"]
    assert not any(result.truncated for result in response)
    parts = {result.index: result.chunk for result in late.rerank(QUERY, documents, long_documents="chunk")}
    assert [result.chunk for result in response[1:]] == [parts[result.index] for result in response[1:]]


def test_a_name_that_is_not_an_ensemble(client):
    with pytest.raises(tr.InvalidRequestError, match=r"^late_encoder, the first stage: .*not a reranker"):
        client.rerank(QUERY, MIXED, cascade=tr.Cascade(3, "late_encoder"))
    found = client.rerank(QUERY, MIXED, cascade=tr.Cascade(3, "late_encoder", fallback=True))
    assert [stage.model for stage in found.stages] == ["reranker"]


def test_either_model_may_come_first(both_server):
    with tr.RerankClient(both_server.grpc_url, "late_interaction") as client:
        response = client.rerank(QUERY, MIXED, cascade=tr.Cascade(2, first="reranker"))
    assert [stage.model for stage in response.stages] == ["reranker", "late_interaction"]


def test_a_server_without_late_interaction_is_told(server):
    with tr.RerankClient(server.grpc_url, timeout=120) as client:
        with pytest.raises(tr.ModelNotFoundError, match=r"^late_interaction, the first stage: .* the server has: "):
            client.rerank("soup", ["Soup needs salt.", "The train is late."], cascade=1)
        response = client.rerank(
            "soup", ["The train is late.", "Soup needs salt."], cascade=tr.Cascade(1, fallback=True)
        )
    assert [result.index for result in response] == [1, 0]
