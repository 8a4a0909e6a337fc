"""Bad requests from other Triton clients: each gets a clear error, and the server keeps answering."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support import raw
from triton_rerank import RequestTimeoutError, RerankClient

OUTPUTS = ["logits", "num_tokens", "truncated"]


@pytest.fixture(autouse=True)
def still_answers(server):
    yield
    with RerankClient(server.grpc_url) as client:
        assert client.rerank("capital of France", ["Paris is.", "Bread is."]).results[0].index == 0


def refused(call, message, status="INVALID_ARGUMENT"):
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert message in caught.value.message()
    assert "Traceback" not in caught.value.message()
    assert caught.value.status() == f"StatusCode.{status}"


def rerank(server, query, document, model="reranker"):
    return raw.infer(server.grpc_url, model, OUTPUTS, query=query, document=document)


def logits(server, ids, mask):
    tensors = {"input_ids": np.asarray(ids, np.int32), "attention_mask": np.asarray(mask, np.int32)}
    return raw.infer(server.grpc_url, "cross_encoder", ["logits"], **tensors)["logits"]


@pytest.mark.parametrize(
    ("query", "document", "message"),
    [
        (raw.column(["q", "q"]), raw.column(["fine", b"caf\xe9"]), "document[1] is not valid UTF-8"),
        (raw.column([b"\xff", "q"]), raw.column(["a", "b"]), "query[0] is not valid UTF-8"),
        (raw.column([b"\xed\xa0\x80"]), raw.column(["lone surrogate"]), "query[0] is not valid UTF-8"),
        (raw.column(["q"]), raw.column(["a", "b"]), "batch size does not match other inputs"),
        (np.array([[b"q", b"q"]], object), raw.column(["a"]), "unexpected shape for input 'query'"),
        (raw.column(["q"] * 129), raw.column(["d"] * 129), "batch-size must be <= 128"),
        (np.array([[1]], np.int32), raw.column(["d"]), "type"),
    ],
)
def test_texts_that_are_none(server, query, document, message):
    refused(lambda: rerank(server, query, document), message)


def test_an_unknown_model(server):
    refused(lambda: rerank(server, raw.column(["q"]), raw.column(["d"]), model="nobody"), "unknown model", "NOT_FOUND")


def test_strange_but_legal_texts_are_scored(server):
    strange = ["", " ", "\0", "\n\t\r", "\u202e", "\ufffd", "a\0b", "</s>" * 2000, "\U0010ffff", "é" * 100_000]
    answer = rerank(server, raw.column([""] * len(strange)), raw.column(strange))
    assert np.isfinite(answer["logits"]).all()
    assert answer["truncated"][:, 0].tolist() == [len(text) > 1000 for text in strange]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[0, 5, 250_037]], [[1, 1, 1]], "input_ids must be 0 to 250036, got 0 to 250037"),
        ([[0, -1, 2]], [[1, 1, 1]], "input_ids must be 0 to 250036, got -1 to 2"),
        ([[0, 5, 2]], [[1, 0, 1]], "attention_mask must be 1 for the tokens of a row, then 0"),
        ([[0, 5, 2], [0, 2, 1]], [[1, 1, 1], [0, 0, 0]], "attention_mask must be 1 for the tokens of a row"),
        ([[0, 5, 2]], [[1, 1, 2]], "attention_mask must be 1 for the tokens of a row"),
        ([[0, 5, 2]], [[1, 1]], "input_ids has shape [1, 3] and attention_mask [1, 2]"),
        ([[7] * 513], [[1] * 513], "a row has 513 tokens, the model takes 512"),
    ],
)
def test_token_ids_that_openvino_would_read_past_its_tables(server, ids, mask, message):
    refused(lambda: logits(server, ids, mask), message)


def test_the_stand_in_refuses_token_ids_beyond_the_vocabulary(onnxruntime_server):
    with pytest.raises(InferenceServerException, match="onnx runtime error"):
        logits(onnxruntime_server, [[0, 5, 250_037]], [[1, 1, 1]])
    assert np.isfinite(logits(onnxruntime_server, [[0, 5, 2]], [[1, 1, 1]])).all()


def test_a_bad_request_fails_alone_among_its_neighbours(server):
    good = (raw.column(["capital of France"] * 8), raw.column([f"Paris, number {n}" for n in range(8)]))
    bad = (raw.column(["q"]), raw.column([b"\xff"]))
    expected = rerank(server, *good)["logits"]
    with ThreadPoolExecutor(16) as pool:
        calls = [(index % 2, pool.submit(rerank, server, *(good, bad)[index % 2])) for index in range(48)]
        for is_bad, call in calls:
            if is_bad:
                assert "not valid UTF-8" in call.exception().message()
            else:
                assert np.abs(call.result()["logits"] - expected).max() < 0.05  # bf16


def test_work_that_nobody_waits_for_is_dropped(server):
    before, _ = raw.statistics(server.grpc_url, "cross_encoder")
    with RerankClient(server.grpc_url, max_retries=0) as client:
        with pytest.raises(RequestTimeoutError):
            client.rerank("q", [f"{n} " + "word " * 500 for n in range(256)], timeout=0.5)
        client.rerank("q", ["the next in line"])
    after, _ = raw.statistics(server.grpc_url, "cross_encoder")
    # Of the first call's eight requests, Triton finishes at most those that were executing.
    assert after - before <= 4
