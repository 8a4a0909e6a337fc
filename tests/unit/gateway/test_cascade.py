"""A cascade behind the gateway. The first stage orders numbers in the opposite way."""

import pytest

from triton_rerank import AsyncRerankClient, Cascade, InvalidRequestError
from triton_rerank.gateway import Settings, create_app

DOCUMENTS = ["4", "1", "3", "5", "2", "0"]


@pytest.fixture
def triton(triton):
    triton.first_stage = lambda text: -float(text) if text.strip(b"0123456789") == b"" else -99.0
    return triton


def asked(triton):
    """Model and number of pairs of each inference but the description's."""
    return [(r.model_name, r.inputs[0].shape[0]) for r in triton.requests if r.model_name != "tokenizer"]


@pytest.mark.parametrize(
    ("wanted", "kept", "best"),
    [
        ({"top_n": 2}, 3, ["2", "1"]),
        ({"top_n": 3}, 3, ["2", "1", "0"]),
        ({"top_n": 4}, 4, ["3", "2", "1", "0"]),
        ({"top_n": 6}, None, ["5", "4", "3", "2", "1", "0"]),
        ({}, None, ["5", "4", "3", "2", "1", "0"]),
        ({"top_n": 2, "truncate": False}, None, ["5", "4"]),
    ],
)
async def test_every_score_of_an_answer_is_the_rerankers(make, triton, wanted, kept, best):
    web = make(cascade=Cascade(3))
    answer = await web.post("/rerank", json={"query": "q", "documents": DOCUMENTS, **wanted})
    results = answer.json()["results"]
    assert [DOCUMENTS[result["index"]] for result in results] == best
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert asked(triton) == ([("reranker", 6)] if kept is None else [("late_interaction", 6), ("reranker", kept)])


async def test_a_share(make, triton):
    await make(cascade=Cascade(0.5)).post("/rerank", json={"query": "q", "documents": DOCUMENTS, "top_n": 1})
    assert asked(triton) == [("late_interaction", 6), ("reranker", 3)]


async def test_pairs_are_scored_by_the_reranker_alone(make, triton):
    answer = await make(cascade=Cascade(1)).post("/score", json={"text_1": "q", "text_2": DOCUMENTS})
    assert len(answer.json()["data"]) == 6
    assert asked(triton) == [("reranker", 6)]


async def test_without_its_first_stage_a_gateway_is_not_ready(make, triton):
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 1}
    ready, missing = make(cascade=Cascade(1)), make(cascade=Cascade(1, "colbert"))
    assert (await ready.get("/health")).status_code == 200
    assert (await missing.get("/health")).status_code == 503
    answer = await missing.post("/rerank", json=body)
    assert answer.status_code == 503
    assert "colbert" not in answer.text  # names of the operator's models are for the log
    lenient = make(cascade=Cascade(1, "colbert", fallback=True))
    assert (await lenient.get("/health")).status_code == 200
    assert (await lenient.post("/rerank", json=body)).json()["results"][0]["index"] == 3


async def test_the_reranker_is_not_its_own_first_stage(triton):
    client = AsyncRerankClient(triton.url)
    with pytest.raises(InvalidRequestError, match="the cascade's first stage is 'reranker', the reranker itself"):
        create_app(client, Settings(cascade=Cascade(first="reranker")))
    await client.close()
    with pytest.raises(InvalidRequestError, match="cascade keeps 0"):
        Settings(cascade=Cascade(0))
