import math
import struct

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from support.fake_triton import read_cells, rerank_purely
from triton_rerank import UnexpectedResponseError
from triton_rerank.ranking.batching import cut_rows
from triton_rerank.ranking.relevance import Relevance, sigmoid
from triton_rerank.transport import messages
from triton_rerank.transport.responses import read_json, read_scores


def response(**changes):
    tensors = {
        "logits": ("FP32", [2, 1], struct.pack("<2f", 1.5, -2.0)),
        "num_tokens": ("INT32", [2, 1], struct.pack("<2i", 7, 9)),
        "truncated": ("BOOL", [2, 1], b"\x00\x01"),
        **changes,
    }
    message = service_pb2.ModelInferResponse()
    for name, tensor in reversed(tensors.items()):
        if tensor is not None:
            message.outputs.add(name=name, datatype=tensor[0], shape=tensor[1])
            message.raw_output_contents.append(tensor[2])
    return message


def test_tensors_are_found_by_name():
    scores = read_scores(response(), 2)
    assert list(scores.logits) == [1.5, -2.0]
    assert list(scores.num_tokens) == [7, 9]
    assert list(scores.truncated) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": None}, r"no tensor 'logits' \(it has: truncated, num_tokens\)"),
        ({"logits": ("FP16", [2, 1], b"1234")}, r"logits is FP16 \[2, 1\], expected FP32 \[2, 1\]"),
        ({"logits": ("FP32", [2], bytes(8))}, r"logits is FP32 \[2\], expected FP32 \[2, 1\]"),
        ({"logits": ("FP32", [3, 1], bytes(12))}, r"expected FP32 \[2, 1\]"),
        ({"logits": ("FP32", [2, 1], bytes(4))}, "logits holds 4 bytes, expected 8"),
        ({"logits": ("FP32", [2, 1], struct.pack("<2f", 0, math.nan))}, r"logits\[1\] of 2 is nan"),
        ({"logits": ("FP32", [2, 1], struct.pack("<2f", math.inf, 0))}, r"logits\[0\] of 2 is inf"),
        ({"truncated": None}, "no tensor 'truncated'"),
    ],
)
def test_a_broken_contract_is_told(changes, message):
    with pytest.raises(UnexpectedResponseError, match=message):
        read_scores(response(**changes), 2)


@pytest.mark.parametrize("raw", [b"", b"\x05\x00\x00\x00{}", b"\x02\x00\x00\x00[]", b"\x03\x00\x00\x00{a}"])
def test_json_that_is_none_is_told(raw):
    with pytest.raises(UnexpectedResponseError, match="info"):
        read_json(response(info=("BYTES", [1, 1], raw)), "info")


@pytest.mark.parametrize("logit", [0.0, 5.26171875, -8.1875, 40.0, 1000.0, -1000.0])
def test_sigmoid_has_no_overflow(logit):
    assert sigmoid(logit) == pytest.approx(1 / (1 + math.exp(-logit)) if logit > -700 else 0.0)
    assert 0.0 <= sigmoid(logit) <= 1.0


def test_golden_scores_of_the_model_card():
    assert sigmoid(-8.1875) == pytest.approx(0.00027803, abs=1e-8)
    assert sigmoid(5.26171875) == pytest.approx(0.99484038, abs=1e-8)


def test_results_are_ordered_by_logit_and_ties_keep_their_place():
    job, _ = rerank_purely(["1", "3.0", "2", "3.00", "-1", "20", "30"])
    results = job.results()
    assert [result.index for result in results] == [6, 5, 1, 3, 2, 0, 4]
    assert [result.rank for result in results] == [1, 2, 3, 4, 5, 6, 7]
    assert results[0].document == "30"
    assert results[0].relevance_score == pytest.approx(1.0)


def test_order_survives_where_sigmoid_is_1():
    job, _ = rerank_purely(["100", "300", "200"])
    assert [result.document for result in job.results()] == ["300", "200", "100"]
    assert {result.relevance_score for result in job.results()} == {1.0}


def test_top_n_and_min_relevance_score():
    assert [r.document for r in rerank_purely(["1", "2", "3"], top_n=2)[0].results()] == ["3", "2"]
    assert len(rerank_purely(["1", "2"], top_n=9)[0].results()) == 2
    assert [r.document for r in rerank_purely(["-1", "2", "0"], min_relevance_score=0.5)[0].results()] == ["2", "0"]
    assert [r.document for r in rerank_purely(["-1", "2", "0"], min_relevance_score=0.5, top_n=1)[0].results()] == ["2"]
    assert rerank_purely(["-1"], min_relevance_score=1)[0].results() == ()


def test_usage_counts_everything_scored():
    job, _ = rerank_purely(["12", "x" * 600, "123"], top_n=1)
    usage = job.usage()
    assert (usage.num_documents, usage.num_pairs, usage.num_tokens, usage.num_truncated) == (
        3,
        3,
        2 + 512 + 3,
        1,
    )


def test_a_document_comes_back_as_the_object_that_was_passed():
    document = {"text": "5", "metadata": {"deep": [1]}}
    (result,) = rerank_purely([document])[0].results()
    assert result.document is document


def test_the_request_follows_the_tensor_contract():
    (part,) = cut_rows("如何".encode(), ["流感".encode(), b""], 32)
    message = messages.infer_request("reranker", part, {"max_length": 128}).message
    assert [(i.name, i.datatype, list(i.shape)) for i in message.inputs] == [
        ("query", "BYTES", [2, 1]),
        ("document", "BYTES", [2, 1]),
    ]
    assert [read_cells(raw) for raw in message.raw_input_contents] == [
        ["如何".encode()] * 2,
        ["流感".encode(), b""],
    ]
    assert [output.name for output in message.outputs] == ["logits", "num_tokens", "truncated"]
    assert message.parameters["max_length"].int64_param == 128


def config(**parameters):
    message = model_config_pb2.ModelConfig(name="late")
    for name, value in parameters.items():
        message.parameters[name].string_value = value
    return message


def test_relevance_is_what_the_server_says_it_is():
    assert Relevance.of(None)(0.0) == Relevance.of(config())(0.0) == 0.5
    assert [Relevance.of(config(logit_scale="32"))(logit) for logit in (-5, 0, 8, 32, 32.001)] == [0, 0, 0.25, 1, 1]


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "much", ""])
def test_a_scale_that_is_none(said):
    with pytest.raises(UnexpectedResponseError, match="logit_scale of model 'late'"):
        Relevance.of(config(logit_scale=said))
