"""Late interaction as it is served: pylate's scores, the cache, and what may go wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from tiny_late import DOCUMENT_LENGTH, DOCUMENTS, QUERIES, QUERY_LENGTH
from triton_rerank import RerankClient

pytestmark = pytest.mark.integration

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("late_golden.json").read_text())
# Vectors are kept as fp16: 32 products, each off by a few thousandths of a percent.
TOLERANCE = 5e-3


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
