"""Overload: every refusal is a ServerOverloadedError, no call hangs, and the server recovers."""

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from conftest import lay_out
from support import quick_server
from support.deployment import ROOT, server_options
from support.monitors import Prometheus, counter, scrape, wait_until
from triton_rerank import InvalidRequestError, RerankClient, RerankError, ServerOverloadedError

DOCUMENTS = ["Washing your hands often is what helps most against the flu. " * 2] * 32
FAILURE = "nv_inference_request_failure"


def outcomes(server, callers, calls_each=2):
    """Count calls by outcome. A call that hangs counts as RequestTimeoutError."""

    def call(number):
        with RerankClient(server.grpc_url, max_retries=0, timeout=120) as client:
            for _ in range(calls_each):
                try:
                    yield len(client.rerank(f"flu {number}", DOCUMENTS))
                except RerankError as error:
                    yield type(error)

    with ThreadPoolExecutor(callers) as pool:
        return Counter(outcome for some in pool.map(lambda n: list(call(n)), range(callers)) for outcome in some)


def answers(server):
    with suppress(ServerOverloadedError), RerankClient(server.grpc_url, max_retries=0) as client:
        return len(client.rerank("flu", DOCUMENTS)) == len(DOCUMENTS)
    return False


TOKENIZER, GPU, CPU = "tokenizer/config.pbtxt", "cross_encoder/config.pbtxt", "cross_encoder/configs/cpu.pbtxt"
MAX_WAIT = ('"max_wait_s"  value: { string_value: "3" }', '"max_wait_s"  value: { string_value: "0.01" }')
QUEUE_TIMEOUT = (
    '"queue_timeout_s"  value: { string_value: "30" }',
    '"queue_timeout_s"  value: { string_value: "0.001" }',
)


def with_policy(target, artefacts, *edits, **policies):
    """Lay out the committed repository with `edits`, and changed queue policies: model -> {field: value}."""
    repository = lay_out(target, artefacts, *edits)
    for name, fields in policies.items():
        path = repository / {"tokenizer": TOKENIZER, "cross_encoder": GPU}[name]
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for field, value in fields.items():
            setattr(config.dynamic_batching.default_queue_policy, field, value)
        path.write_text(text_format.MessageToString(config))
    return repository


LIMIT = {"max_queue_size": 2}


@pytest.mark.parametrize(
    ("runtime", "edits", "policies"),
    [
        pytest.param("openvino", [], {"tokenizer": LIMIT}, id="first step"),
        pytest.param("onnxruntime", [], {"cross_encoder": LIMIT}, id="second step"),
        pytest.param("onnxruntime", [], {"tokenizer": LIMIT, "cross_encoder": LIMIT}, id="both steps"),
        pytest.param(
            "onnxruntime",
            [],
            {"cross_encoder": {"default_timeout_microseconds": 1000}},
            id="timeout at the second step",
        ),
        pytest.param("openvino", [(CPU, *MAX_WAIT)], {}, id="pool"),
        pytest.param("openvino", [(CPU, *QUEUE_TIMEOUT)], {}, id="timeout in the pool"),
    ],
)
def test_overload_ends_in_one_error_and_nothing_hangs(runtime, edits, policies, request, tmp_path):
    # Release notes of newer Tritons report requests that hang at a queue limit inside an ensemble. 2.51 does not hang.
    artefacts = request.getfixturevalue("fp16_artefacts" if runtime == "onnxruntime" else "demo_artefacts")
    repository = with_policy(tmp_path / "repository", artefacts, *edits, **policies)
    with quick_server(repository, runtime=runtime) as server:
        found = outcomes(server, callers=24)
        assert set(found) == {len(DOCUMENTS), ServerOverloadedError}
        assert sum(found.values()) == 48
        if LIMIT in policies.values() or (CPU, *MAX_WAIT) in edits:
            assert answers(server)
        else:  # a queue timeout of 1 ms refuses lone calls too while the machine is busy
            wait_until(lambda: answers(server))
        for model in ("tokenizer", "cross_encoder"):
            assert counter(server, "nv_inference_pending_request_count", model=model) == 0


def test_what_ships_takes_a_burst(server):
    # The callers of one client take turns where its own requests fill the queue.
    with RerankClient(server.grpc_url, timeout=120) as client, ThreadPoolExecutor(16) as pool:
        answered = list(pool.map(lambda number: len(client.rerank(f"flu {number}", DOCUMENTS)), range(16)))
    assert answered == [len(DOCUMENTS)] * 16
    assert answers(server)


@pytest.fixture(scope="module")
def narrow(demo_artefacts, tmp_path_factory):
    """A server with the options of docker-compose.yml, which takes one waiting call beside the one that it computes."""
    repository = with_policy(tmp_path_factory.mktemp("narrow") / "repository", demo_artefacts, (CPU, *MAX_WAIT))
    with quick_server(repository, arguments=server_options()) as server:
        yield server


@pytest.fixture(scope="module")
def narrow_queue(fp16_artefacts, tmp_path_factory):
    """As `narrow`, where the waiting calls are in Triton's queue, as on a GPU."""
    folder = tmp_path_factory.mktemp("narrow_queue") / "repository"
    repository = with_policy(folder, fp16_artefacts, cross_encoder={"max_queue_size": 4})
    with quick_server(repository, runtime="onnxruntime") as server:
        yield server


class Overload:
    """Overload the server with 12 callers until the block ends."""

    def __init__(self, server):
        self.server, self.over = server, threading.Event()
        self.threads = [threading.Thread(target=self.call) for _ in range(12)]

    def call(self):
        with RerankClient(self.server.grpc_url, max_retries=0) as client:
            while not self.over.is_set():
                try:
                    client.rerank("flu", DOCUMENTS)
                except ServerOverloadedError:
                    self.over.wait(0.2)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_a_full_queue_leaves_the_server_healthy(narrow):
    check = [sys.executable, ROOT / "deploy" / "healthcheck.py", f"--url=http://{narrow.http_url}"]
    with Overload(narrow):
        for _ in range(5):
            subprocess.run(check, check=True)
    assert answers(narrow)


def test_a_full_queue_raises_the_alert_of_overload_alone(narrow, tmp_path):
    with Prometheus(tmp_path, narrow) as prometheus, Overload(narrow):
        wait_until(lambda: prometheus.query('ALERTS{alertname="RerankerOverloaded"}'))
        assert not prometheus.query('ALERTS{alertname="RerankerModelDead"}')
    assert answers(narrow)


def failures(server, model):
    reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    return [counter(server, FAILURE, model=model, reason=reason) for reason in reasons]


def refused_by_pool(server):
    return sum(value for name, _, value in scrape(server) if name == "rerank_refused_total")


@pytest.mark.parametrize("name", ["narrow", "narrow_queue"])
def test_refusals_are_counted_by_the_ensemble_alone(name, request):
    # This is why the rules derive refusals. If a newer Triton differs, the rules can be simpler.
    server = request.getfixturevalue(name)
    before, counted = failures(server, "reranker")[3], refused_by_pool(server)
    refused = outcomes(server, callers=12)[ServerOverloadedError]
    assert refused > 0
    assert failures(server, "reranker") == [0, 0, 0, before + 2 * refused]
    assert refused_by_pool(server) - counted == (refused if name == "narrow" else 0)
    with RerankClient(server.grpc_url) as client, pytest.raises(InvalidRequestError):
        client.rerank("flu", ["one document"], max_length=1)
    assert failures(server, "reranker")[3] == before + 2 * refused + 2
    assert failures(server, "tokenizer") == failures(server, "cross_encoder") == [0, 0, 0, 0]


def test_interactive_calls_overtake_what_says_nothing_and_that_overtakes_bulk(server):
    finished = []
    with RerankClient(server.grpc_url) as client, ThreadPoolExecutor(18) as pool:

        def call(priority):
            client.rerank("flu", DOCUMENTS * 2, priority=priority)  # as many as the cross_encoder runs together
            finished.append(priority)

        call(1)
        bulk = [pool.submit(call, 3) for _ in range(14)]
        wait(bulk, return_when=FIRST_COMPLETED)  # now the others wait
        usual = [pool.submit(call, None) for _ in range(3)]
        wait([pool.submit(call, 1), *usual])
    # The server answers accepted requests first, so the call at priority 1 overtakes at least one of the three.
    last_usual = max(index for index, priority in enumerate(finished) if priority is None)
    assert finished.index(1, 1) < last_usual < 12
    assert finished[-3:] == [3, 3, 3]
