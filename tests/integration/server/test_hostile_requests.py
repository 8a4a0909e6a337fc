"""Shapes around 2^31 to 2^63, odd timeouts and long texts without tokens: such a request harms no neighbour."""

import shutil
import subprocess
import sys
import threading
from contextlib import suppress

import grpc
import numpy as np
import pytest
from transformers import AutoTokenizer
from tritonclient.grpc import service_pb2, service_pb2_grpc

from support import quick_server, raw
from triton_rerank import RequestTimeoutError, RerankClient
from triton_rerank_build import export
from triton_rerank_build.late_interaction.settings import LateOptions

ROWS = [0, 2**31, 2**32, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
TEXT_MODELS = ["reranker", "tokenizer", "late_interaction", "late_scorer"]
ENSEMBLES = ["reranker", "late_interaction"]


@pytest.fixture(scope="module")
def repository(tiny_exports, tmp_path_factory):
    """A tiny BERT checkpoint, as a cross-encoder and for late interaction."""
    made = tiny_exports("bert", "fp32")
    repository = shutil.copytree(made.repository, tmp_path_factory.mktemp("hostile") / "repository")
    export(str(made.checkpoint), repository=repository, late_interaction=LateOptions("query: ", "passage: "))
    return repository


@pytest.fixture(scope="module")
def both(repository):
    """A server of both ensembles."""
    with quick_server(repository) as running:
        yield running


def send(server, model, tensors, timeout_us=None):
    """The status code of a request of any shape and bytes, `OK` if it is answered, and the message."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, (datatype, shape, content) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)
    if timeout_us is not None:
        request.parameters["timeout"].int64_param = timeout_us
    with grpc.insecure_channel(server.grpc_url) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def texts(rows, *cells):
    content = b"".join(len(cell).to_bytes(4, "little") + cell for cell in cells)
    return {name: ("BYTES", [rows, 1], content) for name in ("query", "document")}


def rank(server, model):
    with RerankClient(server.grpc_url, model, max_retries=0) as client:
        return client.score([("why is the sky blue?", f"The sky, {n}") for n in range(8)], normalize=False)


def tokens(shape, content=b""):
    return dict.fromkeys(("input_ids", "attention_mask"), ("INT32", shape, content))


SHAPES = [[1, 0], [0, 1], [1, 2**31], [1, 2**32], [1, 2**63 - 1], [2**31, 1], [2**32, 1], [2**32 + 1, 1], [2**62, 1]]
REFUSED = [
    *(
        (model, tokens(shape, content))
        for model in ("cross_encoder", "late_encoder")
        for shape in SHAPES
        for content in (b"", b"\1\0\0\0")
    ),
    *(
        (model, texts(rows, *cells))
        for model in ("tokenizer", "late_scorer")
        for rows in ROWS
        for cells in ((), (b"a",), (b"a", b"b"))
    ),
]


def test_shapes_that_hold_no_rows_are_refused_alone(both):
    expected = {model: rank(both, model) for model in ENSEMBLES}
    failed, stop = [], threading.Event()

    def neighbour(model):
        while not stop.is_set():
            try:
                if np.abs(np.subtract(rank(both, model), expected[model])).max() > 0.05:  # bf16
                    failed.append(f"{model} answers otherwise")
            except Exception as error:  # noqa: BLE001 - told below, by the main thread
                failed.append(repr(error))

    neighbours = [threading.Thread(target=neighbour, args=[model]) for model in ENSEMBLES]
    for thread in neighbours:
        thread.start()
    answers = [(model, *send(both, model, tensors)) for model, tensors in REFUSED]
    stop.set()
    for thread in neighbours:
        thread.join()
    assert not failed
    assert [answer for answer in answers if answer[1] != "INVALID_ARGUMENT"] == []
    assert not [message for _, _, message in answers if "Traceback" in message]


@pytest.mark.parametrize("model", ENSEMBLES)
@pytest.mark.parametrize("rows", ROWS)
def test_an_ensemble_gives_the_right_answer_or_none(both, model, rows):
    # Triton 2.51 counts rows in 32 bits and takes 0, 2^32 or 2^40 rows for no batch: one pair.
    code, message = send(both, model, texts(rows, b"a"))
    assert code in ("OK", "INVALID_ARGUMENT"), message
    assert (code == "OK") == (rows % 2**32 == 0)
    assert len(rank(both, model)) == 8


@pytest.mark.parametrize("model", ENSEMBLES)
@pytest.mark.parametrize("timeout_us", [-1, 2**63 - 1, 2**62, 2**53])
def test_a_timeout_beyond_every_clock_is_none(both, model, timeout_us):
    assert send(both, model, texts(1, b"a"), timeout_us) == ("OK", "")


@pytest.mark.parametrize(
    ("model", "tensors"),
    [
        ("cross_encoder", tokens([1, 2**62])),
        ("cross_encoder", tokens([1, 2**62 + 1], b"\1\0\0\0")),
        ("late_encoder", tokens([1, 2**62])),
        ("late_encoder", tokens([1, 2**62 + 1], b"\1\0\0\0")),
    ],
)
def test_shapes_that_kill_a_model_process_of_triton_2_51(repository, model, tensors):
    """Their byte count is 2^64 more than what is sent. Triton's stub fails to build the array ("array is too big") and
    ends, before it calls this project's code.

    If this fails since the request is refused, Triton checks the byte count: move the shapes to REFUSED.
    """
    with quick_server(repository) as server:
        code, message = send(server, model, tensors)
        assert (code, "is not healthy" in message) == ("INTERNAL", True), message


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_a_request_whose_caller_no_longer_waits_is_told_so(both, model):
    code, message = send(both, model, texts(64, *([b"a" * 10_000] * 64)), timeout_us=1)
    assert (code, message.endswith("Request timeout expired")) == ("UNAVAILABLE", True), message
    assert send(both, model, texts(1, b"a"), timeout_us=60_000_000) == ("OK", "")


@pytest.mark.parametrize("model", ENSEMBLES)
def test_callers_who_gave_up_on_huge_documents_do_not_block_their_neighbours(both, model):
    def give_up(document):
        with RerankClient(both.grpc_url, model, max_retries=0) as client, suppress(RequestTimeoutError):
            client.rerank("why", [document], timeout=1)

    callers = [threading.Thread(target=give_up, args=[" " * 60_000_000 + str(n)]) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    with RerankClient(both.grpc_url, model, max_retries=0) as client:
        assert len(client.rerank("why", ["The sky is blue."], timeout=60)) == 1


MOUNT = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
SMALL = ("unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh")
CALLS = """
import sys
from triton_rerank import RerankClient, RerankError
from triton_rerank_build import EmbeddedServer

with EmbeddedServer(sys.argv[1]) as server, RerankClient(server.grpc_url) as client:
    for document in ("a" * 20_000_000, "a"):
        try:
            print(len(client.rerank("why", [document])))
        except RerankError as error:
            print(str(error).replace("\\n", " "))
"""


def test_a_document_larger_than_shared_memory_fails_alone_with_a_remedy(repository):
    if subprocess.run([*SMALL, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this container lets no process mount a file system")
    command = [*SMALL, sys.executable, "-c", CALLS, str(repository)]
    refused, answered = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "the server's /dev/shm is full: enlarge it" in refused
    assert answered == "1"


@pytest.mark.parametrize("model", ["tokenizer", "late_scorer"])
def test_long_texts_without_tokens_are_cut_and_flagged_or_have_all_their_tokens(both, tiny_exports, model):
    documents = {
        "a" + " " * 500_000 + "b": False,
        "a" + "\0" * 500_000 + "b": False,
        "e" + "\u0301" * 500_000 + " b": False,
        " " * 20_000_000 + "b": True,
        " \0\u0301" * 1_000_000 + "b": True,
        "\ue000" * 3_000_000: True,
        # 2,000 runs of different characters, none of which has a token of its own.
        "".join(chr(0xE000 + n) * 300 for n in range(2_000)): True,
    }
    outputs = ["truncated", "num_tokens"]
    answer = raw.infer(
        both.grpc_url,
        model,
        outputs,
        query=raw.column(["why"] * len(documents)),
        document=raw.column(list(documents)),
    )
    assert dict(zip(documents, answer["truncated"][:, 0].tolist(), strict=True)) == documents
    if model == "tokenizer":
        reference = AutoTokenizer.from_pretrained(tiny_exports("bert", "fp32").checkpoint)
        for row, (text, cut) in enumerate(documents.items()):
            if not cut:
                assert answer["num_tokens"][row, 0] == len(reference("why", text)["input_ids"])
