"""Scores equal PyTorch's and do not depend on other rows of the batch; Triton merges requests."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support import raw
from support.texts import DOCUMENTS, QUERIES
from triton_rerank import RerankClient
from triton_rerank_build.checkpoints.demo import demo_checkpoint
from triton_rerank_build.cli.examples import EXAMPLES

# Every third document for a query, so that each text is scored.
PAIRS = [(QUERIES[q], DOCUMENTS[d]) for q in range(len(QUERIES)) for d in range(q % 3, len(DOCUMENTS), 3)]


@pytest.fixture(scope="module")
def pytorch():
    """Logits of PAIRS, one by one and in full precision."""
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint())
    model = AutoModelForSequenceClassification.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    with torch.inference_mode():
        batches = (tokenizer(*pair, return_tensors="pt", truncation="only_second", max_length=512) for pair in PAIRS)
        return np.array([model(**batch).logits.item() for batch in batches])


def score(server, pairs):
    # More patience than a caller has: on a slow machine 67 pairs are more work than may wait before another call.
    with RerankClient(server.grpc_url, timeout=240, max_retries=50) as client:
        return np.array(client.score(pairs, normalize=False))


def test_the_pairs_are_what_they_should_be(pytorch):
    assert len(PAIRS) == 67
    assert {text for pair in PAIRS for text in pair} == {*QUERIES, *DOCUMENTS}
    assert pytorch.std() > 1  # the oracle has something to tell apart


@pytest.mark.parametrize(("name", "tolerance"), [("fp32_server", 1e-3), ("onnxruntime_server", 2e-2)])
def test_logits_equal_pytorchs(name, tolerance, pytorch, request):
    served = score(request.getfixturevalue(name), PAIRS)
    assert np.abs(served - pytorch).max() < tolerance


def test_served_precision_is_close_and_keeps_the_order(server, pytorch):
    served = score(server, PAIRS)
    assert np.abs(served - pytorch).max() < 0.1
    for query in QUERIES:
        rows = [row for row, pair in enumerate(PAIRS) if pair[0] == query]
        apart = np.subtract.outer(pytorch[rows], pytorch[rows])
        told = np.subtract.outer(served[rows], served[rows])
        assert (told[apart > 0.1] > 0).all(), query


@pytest.mark.parametrize(("name", "noise_of_logits"), [("fp32_server", 1e-4), ("onnxruntime_server", 1e-2)])
def test_a_score_does_not_depend_on_its_neighbours(name, noise_of_logits, request):
    server = request.getfixturevalue(name)
    chosen = [PAIRS[index] for index in (0, 9, 25, 40, 51, 66)]
    alone = np.concatenate([score(server, [pair]) for pair in chosen])
    crowd = [pair for pair in PAIRS if pair not in chosen][: 60 - len(chosen)]
    together = score(server, crowd[:25] + chosen + crowd[25:])[25 : 25 + len(chosen)]
    assert np.abs(together - alone).max() < noise_of_logits
    with ThreadPoolExecutor(12) as pool:
        noise = [pool.submit(score, server, crowd[n::8]) for n in range(8)]
        among = [pool.submit(score, server, chosen) for _ in range(4)]
        for future in among:
            assert np.abs(future.result() - alone).max() < noise_of_logits
        for future in noise:
            future.result()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_examples(server, example):
    with RerankClient(server.grpc_url) as client:
        response = client.rerank(example.query, example.documents)
    assert response.results[0].index == example.best


def requests_per_execution(server, documents_of):
    """Triton's mean number of requests per execution while 16 callers rank 8 documents each."""
    before = raw.statistics(server.grpc_url, "cross_encoder")
    start = threading.Barrier(16)
    with RerankClient(server.grpc_url) as client, ThreadPoolExecutor(16) as pool:

        def caller(number):
            start.wait()
            assert len(client.rerank(QUERIES[number], documents_of(number)).results) == 8

        list(pool.map(caller, range(16)))
    after = raw.statistics(server.grpc_url, "cross_encoder")
    return (after[0] - before[0]) / (after[1] - before[1])


def test_callers_with_different_lengths_are_merged(onnxruntime_server):
    server = onnxruntime_server
    merged = requests_per_execution(server, lambda n: [f"{n} " + "word " * (5 * n + 12 * k) for k in range(8)])
    assert merged > 3
