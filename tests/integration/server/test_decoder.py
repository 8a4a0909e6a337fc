"""Qwen3-Reranker behind the real server: the authors' scores, with the default instruction and with others."""

import json

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from conftest import PATIENT, lay_out
from support import quick_server, raw
from support.gateway import GatewayProcess, ask, post
from support.published_decoder import published_scores
from support.tiny_decoder import LIMIT, PROMPT, tiny_decoder
from triton_rerank import InvalidRequestError, RerankClient
from triton_rerank_build import export
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS

pytestmark = pytest.mark.slow

FP32 = ("cross_encoder/configs/cpu.pbtxt", 'string_value: "auto"', 'string_value: "f32"')
QUERY = "why is the sky blue?"
DOCUMENTS = ["The sky is blue.", *(document for _, document in (*PAIRS[:5], *HARD_PAIRS)), "because of " * 200]
INSTRUCTION = "Find the paragraph of the manual that answers the question.\nIgnore its index"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="module")
def decoder_server(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    export(str(tiny), repository=folder / "exported")
    with quick_server(lay_out(folder / "repository", folder / "exported", FP32, PATIENT)) as server:
        yield server


@pytest.mark.parametrize("instruction", [None, INSTRUCTION, ""])
def test_scores_are_those_of_the_authors_code(tiny, decoder_server, instruction):
    pairs = [(QUERY, document) for document in DOCUMENTS]
    told = PROMPT.instruction if instruction is None else instruction
    expected = published_scores(tiny, pairs, told, limit=LIMIT)
    with RerankClient(decoder_server.grpc_url) as client:
        response = client.rerank(QUERY, DOCUMENTS, instruction=instruction, max_length=LIMIT)
        scores = client.score(pairs, instruction=instruction, max_length=LIMIT)
    found = {result.index: result.relevance_score for result in response}
    assert np.abs(np.array([found[index] for index in range(len(pairs))]) - expected).max() < 1e-4
    assert np.abs(np.array(scores) - expected).max() < 1e-4


def test_an_instruction_changes_the_scores_and_takes_room(decoder_server):
    with RerankClient(decoder_server.grpc_url) as client:
        default, other = (client.score([(QUERY, "The sky")], instruction=text) for text in (None, INSTRUCTION))
        assert client.model_info().instruction == PROMPT.instruction
    assert default != other
    answers = [
        raw.tokenize(decoder_server.grpc_url, [(QUERY, "a")], **({"instruction": text} if text else {}))
        for text in ("", INSTRUCTION, INSTRUCTION * 2)
    ]
    lengths = [answer["num_tokens"][0, 0] for answer in answers]
    assert lengths[2] > lengths[1] != lengths[0]


def test_a_query_that_is_cut_keeps_its_end(tiny, decoder_server):
    answer = raw.tokenize(decoder_server.grpc_url, [("why " * 300, "because " * 300)], max_length=200)
    assert answer["num_tokens"][0, 0] == 200
    assert answer["truncated"][0, 0]
    text = load_tokenizer(resolve_checkpoint(str(tiny))).decode(
        answer["input_ids"][0, :200].tolist(), skip_special_tokens=False
    )
    assert "\n<Document>: b" in text
    assert text.endswith(PROMPT.end)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"instruction": 3}, "instruction must be text, got 3"),
        ({"instruction": "a" * 4097}, "instruction must have at most 4096 characters, got 4097"),
        ({"instruction": "a b " * 400}, "max_length must be"),
        ({"max_length": 20}, "max_length must be"),
    ],
)
def test_unusable_instructions_are_refused(decoder_server, parameters, words):
    with pytest.raises(InferenceServerException, match=words) as caught:
        raw.tokenize(decoder_server.grpc_url, [("q", "d")], **parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_model_without_instructions_refuses_one(server):
    with RerankClient(server.grpc_url) as client:
        assert client.model_info().instruction is None
        with pytest.raises(InvalidRequestError, match="takes no instruction"):
            client.rerank("q", ["d"], instruction="find it")
    with pytest.raises(InferenceServerException, match="this checkpoint takes no instruction"):
        raw.tokenize(server.grpc_url, [("q", "d")], instruction="find it")


def test_the_gateway_hands_the_instruction_on(decoder_server, server):
    body = {"query": QUERY, "documents": ["The sky", "bread"], "raw_scores": True}
    with RerankClient(decoder_server.grpc_url) as client:
        expected = client.score([(QUERY, text) for text in body["documents"]], normalize=False, instruction=INSTRUCTION)
    with GatewayProcess(decoder_server.grpc_url) as gateway:
        answer = ask(gateway, post("/v1/rerank", body | {"instruction": INSTRUCTION}))
    results = json.loads(answer.partition(b"\r\n\r\n")[2])["results"]
    found = {result["index"]: result["relevance_score"] for result in results}
    assert [found[0], found[1]] == pytest.approx(expected, abs=1e-4)
    with GatewayProcess(server.grpc_url) as gateway:  # a model without instructions ignores it, as other servers do
        assert ask(gateway, post("/v1/rerank", body | {"instruction": INSTRUCTION})).startswith(b"HTTP/1.1 200")
