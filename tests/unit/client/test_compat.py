import logging

import numpy as np
import pytest

from support.fake_triton import FakeTriton, read_cells
from triton_rerank import InvalidRequestError
from triton_rerank.compat import CrossEncoder, FlagReranker


@pytest.fixture
def server():
    with FakeTriton() as running:
        yield running


@pytest.fixture
def flag(server):
    reranker = FlagReranker("fake", use_fp16=True, devices=["cuda:0"], batch_size=8, url=server.url)
    yield reranker
    reranker.close()


@pytest.fixture
def encoder(server):
    model = CrossEncoder("fake", device="cpu", url=server.url)
    yield model
    model.close()


def scored(server):
    return [request for request in server.requests if request.model_name == "reranker"]


def test_flag_reranker_gives_logits_in_order(flag, server):
    assert flag.compute_score([["q", "1"], ("other", "-2.5"), ["q", "3"]]) == [1.0, -2.5, 3.0]
    assert scored(server)[0].parameters["max_length"].int64_param == 512


def test_flag_reranker_gives_a_list_for_a_single_pair(flag):
    assert flag.compute_score(["q", "1"]) == [1.0]
    assert flag.compute_score(["q", "0"], normalize=True) == [0.5]
    assert flag.compute_score([]) == []


def test_flag_reranker_passes_lengths_on(flag, server):
    flag.compute_score([["q", "1"]], max_length=64, query_max_length=16, batch_size=4)
    parameters = scored(server)[-1].parameters
    assert (parameters["max_length"].int64_param, parameters["query_max_length"].int64_param) == (64, 16)


def test_flag_reranker_adds_instructions(server):
    reranker = FlagReranker(
        "fake",
        query_instruction_for_rerank="A: ",
        passage_instruction_for_rerank="B",
        passage_instruction_format="{}:{}",
        url=server.url,
    )
    reranker.compute_score([["q", "p"]])
    reranker.close()
    assert [read_cells(raw) for raw in scored(server)[0].raw_input_contents] == [[b"A: q"], [b"B:p"]]


def test_another_checkpoint_is_warned_of_once(server, caplog):
    reranker = FlagReranker("BAAI/bge-reranker-v2-m3", url=server.url)
    with caplog.at_level(logging.WARNING, "triton_rerank"):
        reranker.compute_score([["q", "1"]])
        reranker.compute_score([["q", "1"]])
    reranker.close()
    assert [record.message for record in caplog.records] == [
        "asked for BAAI/bge-reranker-v2-m3, but the server has fake: its scores differ"
    ]


def test_the_address_may_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("TRITON_RERANK_URL", server.url)
    reranker = FlagReranker("fake")
    assert reranker.compute_score(["q", "2"]) == [2.0]
    reranker.close()


def test_cross_encoder_predicts_sigmoids_as_an_array(encoder):
    scores = encoder.predict([("q", "0"), ("q", "2")], batch_size=8, show_progress_bar=False)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0.5, 1 / (1 + np.exp(-2))], rtol=1e-6)
    assert encoder.predict(("q", "0")) == np.float32(0.5)
    assert encoder.predict([("q", "0")], convert_to_numpy=False) == [0.5]


def test_cross_encoder_takes_an_activation(encoder):
    class Identity:
        def __call__(self, logits):
            raise AssertionError("known by its name, as torch.nn.Identity")

    assert encoder.predict([("q", "3")], activation_fn=Identity()).tolist() == [3.0]
    assert encoder.predict([("q", "3")], activation_fn=lambda logits: logits * 2).tolist() == [6.0]
    with pytest.raises(InvalidRequestError, match=r"torch\.from_numpy"):
        encoder.predict([("q", "3")], convert_to_tensor=True)


def test_cross_encoder_ranks(encoder):
    ranked = encoder.rank("q", ["1", "3", "2"], return_documents=True, top_k=2)
    assert [(result["corpus_id"], result["text"]) for result in ranked] == [(1, "3"), (2, "2")]
    assert "text" not in encoder.rank("q", ["1"])[0]
