import inspect
import logging

import grpc
import numpy as np
import pytest
import torch

from support.fake_triton import FakeTriton, read_cells
from triton_rerank import InvalidRequestError, RerankError
from triton_rerank.compat import CrossEncoder, FlagReranker
from triton_rerank.compat.cross_encoder import IGNORED


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
    assert encoder.predict([("q", "3")], activation_fn=torch.tanh).tolist() == [np.float32(np.tanh(3.0))]
    assert encoder.predict([("q", "0")], convert_to_tensor=True).tolist() == [0.5]


@pytest.mark.parametrize(
    ("saved", "expected"),
    [("Identity", 8.5), ("Sigmoid", 0.9997965), (None, 0.9997965)],  # 1 / (1 + e^-8.5)
)
def test_cross_encoder_applies_the_activation_that_the_checkpoint_names(server, saved, expected):
    server.about["activation"] = saved
    model = CrossEncoder("fake", url=server.url)
    assert model.predict(("q", "8.5")) == pytest.approx(expected, abs=1e-7)
    assert model.rank("q", ["8.5"])[0]["score"] == pytest.approx(expected, abs=1e-7)
    model.close()


def test_an_activation_that_is_not_known_here_must_be_passed(server):
    server.about["activation"] = "Tanh"
    model = CrossEncoder("fake", url=server.url)
    with pytest.raises(InvalidRequestError, match="names the activation Tanh; pass it as activation_fn"):
        model.predict(("q", "1"))
    assert model.predict(("q", "1"), activation_fn=torch.nn.Tanh()) == pytest.approx(np.tanh(1.0))
    model.close()


def test_a_server_that_fails_to_tell_its_activation_is_asked_again(server):
    server.about["activation"] = "Identity"
    model = CrossEncoder("fake", url=server.url)
    server.faults.append(lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "broken"))
    with pytest.raises(RerankError):
        model.predict(("q", "8.5"))
    assert model.predict(("q", "8.5")) == 8.5
    model.close()


IDENTITY = torch.nn.Identity()
PAIRS = [("q", "3")]
# A call as each release takes it, which must give the logit 3.0 untouched.
CALLS = {
    "3, positional": lambda model: model.predict(PAIRS, 8, False, 0, IDENTITY, False, True, False),
    "3, keywords": lambda model: model.predict(sentences=PAIRS, batch_size=8, num_workers=0, activation_fct=IDENTITY),
    "4, positional": lambda model: model.predict(PAIRS, 8, False, IDENTITY, False, True, False),
    "5, keywords": lambda model: model.predict(sentences=PAIRS, activation_fn=IDENTITY, apply_softmax=False),
    "6, positional": lambda model: model.predict(PAIRS, None, None, 8, False, IDENTITY, False, True, False),
    "6, keywords": lambda model: model.predict(inputs=PAIRS, activation_fn=IDENTITY, device="cpu", pool=None),
}


@pytest.mark.parametrize("call", [*CALLS.values()], ids=[*CALLS])
def test_predict_takes_its_arguments_as_every_release_does(encoder, call):
    assert call(encoder).tolist() == [3.0]


RANKS = {
    "3": lambda model: model.rank("q", ["3"], 1, True, 8, False, 0, IDENTITY, False, True, False),
    "4": lambda model: model.rank("q", ["3"], 1, True, 8, False, IDENTITY, False, True, False),
    "6": lambda model: model.rank("q", ["3"], 1, True, None, None, 8, False, IDENTITY),
    "keywords of 3": lambda model: model.rank("q", ["3"], return_documents=True, activation_fct=IDENTITY),
}


@pytest.mark.parametrize("call", [*RANKS.values()], ids=[*RANKS])
def test_rank_takes_its_arguments_as_every_release_does(encoder, call):
    assert call(encoder) == [{"corpus_id": 0, "score": 3.0, "text": "3"}]


MODELS = {
    "3, positional": lambda url: CrossEncoder("fake", 1, 64, "cpu", url=url),
    "3, keywords": lambda url: CrossEncoder(
        model_name="fake",
        max_length=64,
        automodel_args={},
        cache_dir="c",
        default_activation_function=IDENTITY,
        url=url,
    ),
    "5, positional": lambda url: CrossEncoder("fake", 1, 64, IDENTITY, url=url),
    "6, keywords": lambda url: CrossEncoder("fake", max_length=64, activation_fn=IDENTITY, backend="onnx", url=url),
}


@pytest.mark.parametrize("release", MODELS)
def test_the_constructor_takes_its_arguments_as_every_release_does(server, release):
    expected = 0.9525741 if release == "3, positional" else 3.0  # its fourth argument is the device: sigmoid(3)
    model = MODELS[release](server.url)
    assert model.predict(("q", "3")) == pytest.approx(expected, abs=1e-7)
    assert scored(server)[-1].parameters["max_length"].int64_param == 64
    model.close()


def test_what_may_change_scores_and_is_not_known_is_a_type_error(server, encoder, flag):
    with pytest.raises(TypeError, match="predict got prompt, which may change scores"):
        encoder.predict(PAIRS, prompt="Represent: ")
    with pytest.raises(TypeError, match="predict got prompt_name, which may change scores"):
        encoder.predict(PAIRS, "query")
    with pytest.raises(TypeError, match="rank got normalise"):
        encoder.rank("q", ["1"], normalise=True)
    with pytest.raises(TypeError, match="CrossEncoder got tokenizer_kwargs"):
        CrossEncoder("fake", tokenizer_kwargs={"truncation_side": "left"}, url=server.url)
    with pytest.raises(TypeError, match="compute_score got max_len"):
        flag.compute_score(PAIRS, max_len=64)
    with pytest.raises(TypeError, match="FlagReranker got normalise"):
        FlagReranker("fake", normalise=True, url=server.url)
    with pytest.raises(InvalidRequestError, match="num_labels is 3"):
        CrossEncoder("fake", num_labels=3, url=server.url)


def test_every_argument_of_the_installed_release_is_known():
    from sentence_transformers import CrossEncoder as original  # noqa: N813  # slow to import

    refused = {
        "__init__": {"modules", "prompts", "default_prompt_name", "processor_kwargs", "config_kwargs"},
        "predict": {"prompt_name", "prompt"},
        "rank": {"prompt_name", "prompt"},
    }
    for name, without in refused.items():
        ours = inspect.signature(getattr(CrossEncoder, name)).parameters
        theirs = inspect.signature(getattr(original, name)).parameters.values()
        named = {parameter.name for parameter in theirs if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
        assert named <= ours.keys() | IGNORED | without | {"apply_softmax"}
        assert without <= named


def test_pairs_may_be_an_array_or_a_generator(encoder, flag):
    array = np.array([["q", "1"], ["q", "2"]])
    assert flag.compute_score(array) == [1.0, 2.0]
    assert flag.compute_score(["q", document] for document in ("1", "2")) == [1.0, 2.0]
    assert encoder.predict(array, activation_fn=IDENTITY).tolist() == [1.0, 2.0]
    assert encoder.predict((pair for pair in [("q", "1")]), activation_fn=IDENTITY).tolist() == [1.0]
    assert encoder.predict(np.array(["q", "1"]), activation_fn=IDENTITY) == 1.0
    with pytest.raises(InvalidRequestError, match=r"sentences\[1\] is not a \(query, document\) pair"):
        flag.compute_score([["q", "1"], ["q"]])
    with pytest.raises(InvalidRequestError):
        encoder.predict([("q", None)])


def test_flag_reranker_goes_on_after_stop_self_pool(flag):
    flag.stop_self_pool()
    assert flag.compute_score(["q", "1"]) == [1.0]


def test_cross_encoder_cuts_the_longer_text_first(server, encoder):
    encoder.predict(("q", "1"))
    parameters = scored(server)[-1].parameters
    assert "query_max_length" in parameters
    assert parameters["query_max_length"].int64_param == 0


def test_documents_whose_sigmoids_are_equal_are_ranked_by_logit(encoder):
    ranked = encoder.rank("q", ["18", "40", "25"])
    assert [result["corpus_id"] for result in ranked] == [1, 2, 0]
    assert {result["score"] for result in ranked} == {1.0}


def test_cross_encoder_ranks(encoder):
    ranked = encoder.rank("q", ["1", "3", "2"], return_documents=True, top_k=2)
    assert [(result["corpus_id"], result["text"]) for result in ranked] == [(1, "3"), (2, "2")]
    assert "text" not in encoder.rank("q", ["1"])[0]
