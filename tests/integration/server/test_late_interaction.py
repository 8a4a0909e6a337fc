"""Late interaction through the server: scores equal to pylate's, token counts, limits."""

import json

import numpy as np
import pytest

from support import ROOT, quick_server
from support.tiny_late import DOCUMENT_LENGTH, DOCUMENTS, QUERIES, QUERY_LENGTH, tiny_colbert
from support.tiny_models import tiny_checkpoint
from triton_rerank import AsyncRerankClient, InvalidRequestError, RerankClient
from triton_rerank_build import export

pytestmark = pytest.mark.integration

GOLDEN = json.loads((ROOT / "tests/support/late_golden.json").read_text())
# Vectors are kept as fp16: 32 products, each off by a few thousandths of a percent.
TOLERANCE = 1e-2


@pytest.fixture
def colbert(colbert_server):
    with RerankClient(colbert_server.grpc_url, "late_interaction") as client:
        yield client


def test_scores_are_pylates(colbert):
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    served = np.array(colbert.score(pairs, normalize=False)).reshape(len(QUERIES), len(DOCUMENTS))
    assert np.ptp(GOLDEN["scores"]) > 1  # the oracle has something to tell apart
    assert np.abs(served - GOLDEN["scores"]).max() < TOLERANCE


def test_tokens_and_truncation_are_told(colbert):
    results = colbert.rerank(QUERIES[0], DOCUMENTS).results
    by_index = sorted(results, key=lambda result: result.index)
    assert [result.num_tokens - QUERY_LENGTH for result in by_index] == [len(ids) for ids in GOLDEN["ids"]["documents"]]
    assert [result.truncated for result in by_index] == [len(text) > 100 for text in DOCUMENTS]
    assert all(result.truncated for result in colbert.rerank(QUERIES[2], DOCUMENTS).results)
    assert colbert.model_info().max_length == DOCUMENT_LENGTH


def test_the_relevance_score_is_the_mean_of_the_best_cosines(colbert, colbert_server):
    info = colbert.model_info()
    assert (info.logit_scale, info.runtime, info.checkpoint) == (32, "onnxruntime", "tiny")
    results = colbert.rerank(QUERIES[0], DOCUMENTS).results
    assert [result.relevance_score for result in results] == [result.logit / 32 for result in results]
    assert [result.logit for result in results] == sorted((result.logit for result in results), reverse=True)
    scores = colbert.score([(QUERIES[0], result.text) for result in results])
    assert scores == pytest.approx([result.relevance_score for result in results], abs=1e-6)
    kept = colbert.rerank(QUERIES[0], DOCUMENTS, min_relevance_score=results[2].relevance_score).results
    assert [result.index for result in kept] == [result.index for result in results[:3]]


async def test_the_async_client_says_the_same(colbert, colbert_server):
    async with AsyncRerankClient(colbert_server.grpc_url, "late_interaction") as client:
        assert await client.model_info() == colbert.model_info()
        assert (await client.rerank(QUERIES[0], DOCUMENTS)).results == colbert.rerank(QUERIES[0], DOCUMENTS).results
        pairs = [(query, DOCUMENTS[0]) for query in QUERIES]
        assert await client.score(pairs) == colbert.score(pairs)


def test_one_server_serves_both_ensembles_on_a_cpu(colbert, tmp_path):
    repository = tmp_path / "repository"
    export(str(tiny_colbert(tmp_path / "colbert")), repository=repository)
    export(str(tiny_checkpoint(tmp_path / "cross-encoder", "bert")), repository=repository)
    config = repository / "late_encoder/configs/cpu.pbtxt"
    config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "f32"'))
    with quick_server(repository) as server:
        assert server.models == ("reranker", "late_interaction")
        with RerankClient(server.grpc_url, "late_interaction") as late, RerankClient(server.grpc_url) as reranker:
            logits = [result.logit for result in late.rerank(QUERIES[0], DOCUMENTS).results]
            assert len(set(reranker.score([(QUERIES[0], text) for text in DOCUMENTS], normalize=False))) > 1
    assert logits == pytest.approx([result.logit for result in colbert.rerank(QUERIES[0], DOCUMENTS).results], abs=1e-3)


def test_long_documents_are_scored_in_parts(colbert):
    whole, cut = colbert.rerank(QUERIES[0], [DOCUMENTS[2]], long_documents="chunk").results[0], DOCUMENTS[2]
    assert whole.chunk.count > 2
    assert not whole.truncated
    assert whole.chunk.text in cut


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"max_length": 3}, "max_length must be 4 to 48 tokens of a document"),
        ({"max_length": 49}, "max_length must be 4 to 48 tokens of a document"),
        ({"query_max_length": 16}, "query_max_length is 32 in this checkpoint"),
    ],
)
def test_lengths_that_the_checkpoint_does_not_take(colbert, parameters, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        colbert.rerank(QUERIES[0], DOCUMENTS, **parameters)


def test_a_query_without_a_limit_of_its_own_has_the_checkpoints(colbert):
    expected = [result.logit for result in colbert.rerank(QUERIES[0], DOCUMENTS)]
    assert [result.logit for result in colbert.rerank(QUERIES[0], DOCUMENTS, query_max_length=0)] == expected


def test_a_shorter_document_is_asked_for(colbert):
    short = colbert.rerank(QUERIES[0], [DOCUMENTS[1]], max_length=8).results[0]
    assert (short.num_tokens, short.truncated) == (QUERY_LENGTH + 8, True)
