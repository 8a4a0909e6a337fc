"""The vector cache of late interaction: hits, size limit, unchanged scores; a failing request fails alone."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from support import quick_server, raw
from support.deployment import queries
from support.monitors import cache_metrics, scrape, triton_process, wait_until
from support.promql import selectors
from support.texts import DOCUMENTS as TEXTS
from support.texts import QUERIES as ASKED
from support.tiny_late import DOCUMENTS, HIDDEN, QUERIES, vocabulary
from triton_rerank import InferenceError, RequestTimeoutError, RerankClient
from triton_rerank_build.repository.manifest import Artefact

pytestmark = pytest.mark.integration

LIMIT_BYTES = 20_000
NUMBERED = [f"{number} {text}"[:200] for number in range(12) for text in TEXTS]


@pytest.fixture(scope="module")
def small_server(encoder_repository, tmp_path_factory):
    """An fp16 encoder in OpenVINO, with room for a few of the texts."""
    repository = shutil.copytree(encoder_repository, tmp_path_factory.mktemp("small") / "repository")
    for name, old, new in (
        ("late_scorer/config.pbtxt", "1073741824", str(LIMIT_BYTES)),
        ("late_encoder/configs/cpu.pbtxt", 'string_value: "auto"', 'string_value: "f32"'),
    ):
        text = (repository / name).read_text()
        assert text.count(old) == 1
        (repository / name).write_text(text.replace(old, new))
    with quick_server(repository) as running:
        yield running


@pytest.fixture
def small(small_server):
    with RerankClient(small_server.grpc_url, "late_interaction") as client:
        yield client


def test_any_encoders_scores_are_those_of_plain_transformers(small, encoder_repository):
    source = encoder_repository.parent / "tiny"
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    model = AutoModel.from_pretrained(source, add_pooling_layer=False).eval()

    def vectors(text):
        ids = tokenizer.encode(text).ids
        with torch.inference_mode():
            states = model(torch.tensor([ids])).last_hidden_state[0, 1:-1]  # without <s> and </s>
        return torch.nn.functional.normalize(states, dim=-1)

    queries, documents = ASKED[::4], [text[:60] for text in TEXTS]
    encoded = [vectors("passage: " + text) for text in documents]
    for query in queries:
        asked = vectors("query: " + query)
        expected = [float(32 * (asked @ document.T).max(dim=1).values.mean()) for document in encoded]
        served = small.score([(query, document) for document in documents], normalize=False)
        assert np.abs(np.array(served) - expected).max() < 0.02


def test_what_was_scored_is_not_encoded_again(colbert_server):
    documents = [f"{number} of the mountain" for number in range(40)]
    with RerankClient(colbert_server.grpc_url, "late_interaction") as client:
        before = cache_metrics(colbert_server)
        first = client.rerank("why is water blue", documents)
        encoded, after = raw.statistics(colbert_server.grpc_url, "late_encoder"), cache_metrics(colbert_server)
        again = client.rerank("why is water blue", documents)
        assert raw.statistics(colbert_server.grpc_url, "late_encoder") == encoded
        client.rerank("another query", documents)
    last = cache_metrics(colbert_server)
    assert after["misses_total/document"] - before["misses_total/document"] == 40
    assert last["misses_total/document"] == after["misses_total/document"]
    assert last["hits_total/document"] - after["hits_total/document"] == 80
    assert last["misses_total/query"] - after["misses_total/query"] == 1
    assert again.results == first.results
    # The cache holds fp16 vectors: 32 for the query, and those of each document.
    assert after["bytes"] - before["bytes"] > 40 * 5 * 16 * 2


def test_what_concurrent_callers_encode_is_counted_exactly(colbert_server):
    # A worker encodes for calls that lack only a query, another for those that lack documents: both count queries.
    known, calls, new = ["the sky", "a train"], 500, 3

    def call(number):
        client.rerank(f"why {number}", known)
        client.rerank(f"when {number}", [f"mountain {number} {row}" for row in range(new)])

    with (
        RerankClient(colbert_server.grpc_url, "late_interaction", max_retries=0) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        client.rerank("why", known)
        before = cache_metrics(colbert_server)
        list(pool.map(call, range(calls)))
        after = cache_metrics(colbert_server)
    counted = {name: after[name] - before[name] for name in after if name.startswith(("hits", "misses"))}
    assert counted == {
        "hits_total/query": 0,
        "hits_total/document": len(known) * calls,
        "misses_total/query": 2 * calls,
        "misses_total/document": new * calls,
    }


def test_every_series_that_the_dashboard_reads_is_exported(colbert_server):
    names = {name for _, expression in queries() for name, _ in selectors(expression)}
    read = {name for name in names if name.startswith("late_interaction_")}
    assert len(read) > 5
    assert read <= {name for name, _, _ in scrape(colbert_server)}


def test_a_text_cached_at_one_length_is_not_taken_for_another(colbert_server):
    with RerankClient(colbert_server.grpc_url, "late_interaction") as client:
        whole, cut = (client.rerank("sky", [DOCUMENTS[1]], max_length=length)[0] for length in (None, 8))
        assert (whole.num_tokens - cut.num_tokens, whole.truncated, cut.truncated) == (32, False, True)
        assert whole.logit != cut.logit
        for length, expected in ((8, cut), (None, whole)):  # both are cached by now
            assert client.rerank("sky", [DOCUMENTS[1]], max_length=length)[0] == expected


def test_a_call_of_a_whole_batch_is_one_request_since_rows_of_similar_length_are_encoded_together(colbert_server):
    with RerankClient(colbert_server.grpc_url, "late_interaction") as client:
        assert client.rerank("sky", [f"{number} of the sky" for number in range(128)]).timing.num_requests == 1


def test_known_texts_do_not_wait_for_the_encoder(colbert_repository):
    known = [f"train {number}" for number in range(8)]
    with (
        quick_server(colbert_repository, runtime="onnxruntime") as server,
        RerankClient(server.grpc_url, "late_interaction", max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        expected = client.rerank("why", known).results
        encoder = triton_process(server, "late_encoder_0_0")
        encoder.suspend()
        waiting = pool.submit(client.rerank, "why", ["new"])
        wait_until(lambda: cache_metrics(server)["misses_total/document"] >= 9)
        assert client.rerank("why", known).results == expected
        assert not waiting.done()
        encoder.resume()
        assert len(waiting.result()) == 1


def test_a_full_cache_under_concurrent_callers(small, small_server):
    alone = {query: [small.score([(query, text)], normalize=False)[0] for text in NUMBERED[:24]] for query in ASKED[:3]}

    def call(turn):
        query, start = ASKED[turn % 3], turn * 7 % 90
        documents = NUMBERED[start : start + 24] + NUMBERED[:24]
        scored = small.score([(query, text) for text in documents], normalize=False)
        assert np.abs(np.array(scored[24:]) - alone[query]).max() < 1e-2
        return cache_metrics(small_server)["bytes"]

    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(call, range(48)))
    assert 0 < max(sizes) <= LIMIT_BYTES
    assert cache_metrics(small_server)["evictions_total"] > 100


def test_a_callers_timeout_reaches_the_scorer(colbert_server):
    pair = {"query": raw.column(["sky"]), "document": raw.column(["blue"])}
    with pytest.raises(InferenceServerException, match="Request timeout expired") as caught:
        raw.infer(colbert_server.grpc_url, "late_interaction", ["logits"], timeout_us=1, **pair)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


def test_texts_that_are_none_are_refused(colbert_server):
    columns = {"query": raw.column(["q", "q"]), "document": raw.column(["fine", b"\xff"])}
    with pytest.raises(InferenceServerException, match=r"document\[1\] is not valid UTF-8"):
        raw.infer(colbert_server.grpc_url, "late_interaction", ["logits"], **columns)


def test_work_that_nobody_waits_for_is_dropped(small, small_server):
    before, _ = raw.statistics(small_server.grpc_url, "late_scorer")
    with pytest.raises(RequestTimeoutError):
        small.rerank("q", [f"{number} {TEXTS[1]}" for number in range(2000)], timeout=0.1)
    assert small.rerank(ASKED[0], TEXTS).results[0].rank == 1
    after, _ = raw.statistics(small_server.grpc_url, "late_scorer")
    assert after - before < 2000 / 32


@pytest.fixture(scope="module")
def broken_server(colbert_repository, tmp_path_factory):
    """A server whose encoder returns NaN for the word "mountain", and whose models can be unloaded."""
    repository = shutil.copytree(colbert_repository, tmp_path_factory.mktemp("broken") / "repository")
    graph = onnx.load(repository / "late_encoder/1/model.onnx", load_external_data=False).graph
    table = next(tensor for tensor in graph.initializer if list(tensor.dims) == [len(vocabulary()), HIDDEN])
    offset = next((int(entry.value) for entry in table.external_data if entry.key == "offset"), 0)
    with (repository / "late_encoder/1/model.onnx.data").open("r+b") as file:
        file.seek(offset + vocabulary()["mountain"] * HIDDEN * 4)
        file.write(np.full(HIDDEN, np.nan, np.float32).tobytes())
    # The manifests name the changed file, so that the server starts.
    data = "late_encoder/1/model.onnx.data"
    before, after = (Artefact.of(folder / data).sha256 for folder in (colbert_repository, repository))
    for manifest in repository.glob("*/1/manifest.json"):
        manifest.write_text(manifest.read_text().replace(before, after))
    explicit = ("--model-control-mode=explicit", "--load-model=*")
    with quick_server(repository, runtime="onnxruntime", arguments=explicit) as running:
        yield running


def test_vectors_that_are_no_numbers_are_told_to_those_who_wait_for_them_alone(broken_server, colbert_server):
    documents = [text for text in DOCUMENTS if "mountain" not in text]
    with (
        RerankClient(broken_server.grpc_url, "late_interaction", max_retries=0) as client,
        RerankClient(colbert_server.grpc_url, "late_interaction") as healthy,
        ThreadPoolExecutor(8) as pool,
    ):
        expected = healthy.rerank(QUERIES[0], documents).results
        bad = [pool.submit(client.rerank, QUERIES[0], [f"mountain {number}", "sky"]) for number in range(8)]
        good = [pool.submit(client.rerank, QUERIES[0], documents) for _ in range(8)]
        for call in bad:
            with pytest.raises(InferenceError, match="late_encoder: a document vector contains NaN or infinity"):
                call.result()
        for call in good:
            assert [result.logit for result in call.result()] == pytest.approx(
                [result.logit for result in expected], abs=1e-3
            )


def test_a_missing_encoder_fails_those_whose_texts_are_not_cached_alone(broken_server):
    cached, new = [f"sky {number}" for number in range(8)], [f"sea {number}" for number in range(8)]
    with (
        InferenceServerClient(broken_server.grpc_url) as triton,
        RerankClient(broken_server.grpc_url, "late_interaction", max_retries=0) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        expected = client.score([("why", text) for text in cached], normalize=False)
        triton.unload_model("late_encoder")
        wait_until(lambda: not triton.is_model_ready("late_encoder"))
        calls = [pool.submit(client.score, [("why", text)], normalize=False) for text in cached + new]
        assert [call.result()[0] for call in calls[:8]] == pytest.approx(expected)
        for call in calls[8:]:
            with pytest.raises(InferenceError, match="late_encoder"):
                call.result()
        triton.load_model("late_encoder")
