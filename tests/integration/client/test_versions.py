"""Two versions of the models behind one client, as in a rolling update: no call has scores of both."""

import shutil
import threading
from contextlib import ExitStack

import pytest

import triton_rerank as tr
from support.balancer import Balancer
from support.monitors import free_port, wait_until
from support.twins import TWINS
from triton_rerank_build import EmbeddedServer

pytestmark = pytest.mark.integration

QUERY = "why is the sky blue"
DOCUMENTS = [f"{word} {number}" for number in range(6) for word in ("sky", "a blue mountain", "water", "train to")]
LONG = [" ".join(DOCUMENTS), "sky", " ".join(DOCUMENTS[::-1])]
MODELS = ("reranker", "late_interaction")


@pytest.fixture(scope="module")
def old_repository(both_server, shared_folder):
    return shared_folder / "both" / "repository"


@pytest.fixture(scope="module")
def new_repository(tiny_exports, encoder_repository, tmp_path_factory):
    """Another checkpoint in both ensembles."""
    folder = tmp_path_factory.mktemp("versions") / "repository"
    shutil.copytree(tiny_exports("roberta", "fp32").repository, folder)
    shutil.copytree(encoder_repository, folder, dirs_exist_ok=True)
    for config in folder.glob("*_encoder/configs/cpu.pbtxt"):
        config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "f32"'))
    return folder


@pytest.fixture(scope="module")
def new_server(new_repository):
    with EmbeddedServer(new_repository) as running:
        yield running


@pytest.fixture(scope="module")
def expected(both_server, new_server):
    """(model, its version) -> the logits of DOCUMENTS, each server asked alone and with one request."""
    found = {}
    for server in (both_server, new_server):
        for model in MODELS:
            with tr.RerankClient(server.grpc_url, model) as client:
                logits = client.score([(QUERY, text) for text in DOCUMENTS], normalize=False)
                found[model, client.model_info().model_version] = pytest.approx(logits, abs=1e-4)
    assert len(found) == 4, "two models in two versions"
    return found


@pytest.fixture(params=["two addresses", "one address"])
def both(request, client_class, both_server, new_server):
    """A client of both servers, whose calls have several requests."""
    urls = [both_server.grpc_url, new_server.grpc_url]
    with ExitStack() as stack:
        if request.param == "one address":
            urls = stack.enter_context(Balancer(urls)).url
        yield stack.enter_context(client_class(urls, pairs_per_request=3, timeout=60))


def in_order(response, model="reranker"):
    return [result.logit for result in sorted(response, key=lambda result: result.index) if result.stage == model]


def versions_of(expected, model):
    return {version for name, version in expected if name == model}


def test_answers_name_the_version_that_the_server_describes(both_server, new_server, client_class):
    for server in (both_server, new_server):
        for model in MODELS:
            with client_class(server.grpc_url, model) as client:
                response = client.rerank(QUERY, DOCUMENTS)
                assert response.model_version == client.model_info().model_version
                assert len(response.model_version) == 9


def test_a_calls_requests_are_answered_by_one_version(both, expected):
    seen = set()
    for _ in range(12):
        response = both.rerank(QUERY, DOCUMENTS)
        assert in_order(response) == expected["reranker", response.model_version]
        assert response.timing.num_requests == 8
        seen.add(response.model_version)
    assert seen == versions_of(expected, "reranker")


def test_searches_of_one_rerank_many(both, expected):
    for response in both.rerank_many([(QUERY, DOCUMENTS)] * 12, concurrency=4):
        assert in_order(response) == expected["reranker", response.model_version]


def test_pairs(both, expected):
    known = [logits for (model, _), logits in expected.items() if model == "reranker"]
    for _ in range(12):
        assert both.score([(QUERY, text) for text in DOCUMENTS], normalize=False) in known


def test_each_stage_of_a_cascade(both, expected):
    for _ in range(12):
        response = both.rerank(QUERY, DOCUMENTS, cascade=14)
        for stage in response.stages:
            logits = expected[stage.model, stage.model_version].expected
            results = [result for result in response if result.stage == stage.model]
            assert len(results) in (10, 14)
            for result in results:
                assert result.logit == pytest.approx(logits[result.index], abs=1e-4)


def test_parts_of_long_documents(both, both_server, new_server):
    """Parts take several rounds of requests."""

    def chunked(client):
        response = client.rerank(QUERY, [*LONG, *DOCUMENTS], long_documents="chunk", max_length=32)
        assert any(result.chunk for result in response)
        return response.model_version, in_order(response)

    known = {}
    for server in (both_server, new_server):
        with tr.RerankClient(server.grpc_url) as client:
            version, logits = chunked(client)
            known[version] = pytest.approx(logits, abs=1e-4)
    for _ in range(12):
        version, logits = chunked(both)
        assert logits == known[version]


def test_a_new_version_beside_the_old_one_then_alone_and_back_under_load(old_repository, new_repository, expected):
    urls = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    old, new = (
        EmbeddedServer(repository, model="reranker", grpc_port=int(url.rpartition(":")[2]))
        for repository, url in zip((old_repository, new_repository), urls, strict=True)
    )
    over, lock = threading.Event(), threading.Lock()
    answered: list[str] = []
    wrong: list[object] = []

    def call(client_class):
        with client_class(urls, pairs_per_request=3, timeout=60) as client:
            while not over.wait(0.02):  # leaves the processors time to start servers
                try:
                    response = client.rerank(QUERY, DOCUMENTS)
                    if in_order(response) != expected["reranker", response.model_version]:
                        wrong.append(response)
                    with lock:
                        answered.append(response.model_version)
                except tr.RerankError as error:
                    wrong.append(error)

    def seen(*versions):
        with lock:
            answered.clear()
        wait_until(lambda: wrong or (set(answered) == set(versions) and len(answered) >= 10))

    with tr.RerankClient(urls[0]) as client, ExitStack() as stack:
        for server in (old, new):
            stack.callback(server.stop)
        old.start()
        before = client.model_info().model_version
        (after,) = versions_of(expected, "reranker") - {before}
        callers = [threading.Thread(target=call, args=(TWINS[name],)) for name in ("sync", "sync", "async")]
        for caller in callers:
            caller.start()
        stack.callback(lambda: [caller.join() for caller in callers])
        stack.callback(over.set)
        new.start()
        seen(before, after)
        old.stop()
        seen(after)
        old.start()
        seen(before, after)
        new.stop()
        seen(before)
    assert wrong == []
