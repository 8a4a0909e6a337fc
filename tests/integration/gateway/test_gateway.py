"""The command `triton-rerank gateway` in front of the real tritonserver."""

import json
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import trustme

from conftest import PATIENT, lay_out
from support import ROOT, quick_server
from support.fake_triton import FakeTriton
from support.gateway import GatewayProcess, post, read_all, status_of, wait_for
from support.pages import blocks
from triton_rerank import RerankClient

pytestmark = pytest.mark.integration

QUERY = "如何预防流感？"
DOCUMENTS = [
    "The central bank raised interest rates by a quarter of a point.",
    "Wearing masks and washing hands frequently can help prevent influenza.",
    "",
    "flu " * 700,
    "The museum is open from nine to five, except on Mondays.",
]


@pytest.fixture(scope="module")
def direct(server):
    """The same call through the gRPC client."""
    with RerankClient(server.grpc_url) as client:
        yield client.rerank(QUERY, DOCUMENTS)


def test_scores_tokens_and_order_are_those_of_the_client(gateway, direct):
    answer = httpx.post(f"{gateway.url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()
    assert [(r["index"], r["relevance_score"]) for r in answer["results"]] == [
        (result.index, result.relevance_score) for result in direct
    ]
    assert answer["usage"]["total_tokens"] == direct.usage.num_tokens
    nim = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
    rankings = httpx.post(f"{gateway.url}/v1/ranking", json=nim).json()["rankings"]
    assert [(r["index"], r["logit"]) for r in rankings] == [(result.index, result.logit) for result in direct]


def test_score_keeps_the_order_of_the_pairs(gateway, direct):
    scores = {result.index: result.relevance_score for result in direct}
    one = httpx.post(f"{gateway.url}/score", json={"text_1": QUERY, "text_2": DOCUMENTS}).json()
    many = httpx.post(f"{gateway.url}/score", json={"text_1": [QUERY] * 5, "text_2": DOCUMENTS}).json()
    for answer in (one, many):
        assert {item["index"]: item["score"] for item in answer["data"]} == pytest.approx(scores, abs=2e-3)
    assert one["usage"]["total_tokens"] == direct.usage.num_tokens


def test_what_the_model_is(gateway, server):
    with RerankClient(server.grpc_url) as client:
        about = client.model_info()
    info = httpx.get(f"{gateway.url}/info").json()
    assert (info["model_id"], info["max_input_length"]) == (about.checkpoint, about.default_max_length)
    models = httpx.get(f"{gateway.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == [about.checkpoint, "reranker", "rerank-english-v3.0"]


def test_an_explicit_prohibition_to_truncate(gateway):
    body = {"query": QUERY, "texts": DOCUMENTS, "truncate": False}
    assert httpx.post(f"{gateway.url}/rerank", json=body).status_code == 400
    body["texts"] = DOCUMENTS[:2]
    assert httpx.post(f"{gateway.url}/rerank", json=body).status_code == 200


def test_curl(gateway):
    body = json.dumps({"query": "flu", "documents": DOCUMENTS[:2]})
    done = subprocess.run(
        ["curl", "-sS", "--fail", f"{gateway.url}/v1/rerank", "-d", body], capture_output=True, text=True, check=True
    )
    assert [result["index"] for result in json.loads(done.stdout)["results"]] == [1, 0]


def test_chunked_and_expecting_bodies(gateway):
    body = json.dumps({"query": "flu", "documents": DOCUMENTS}).encode()
    parts = (body[at : at + 7] for at in range(0, len(body), 7))
    assert httpx.post(f"{gateway.url}/rerank", content=parts).status_code == 200
    command = ["curl", "-sS", "--fail", f"{gateway.url}/rerank", "-H", "Expect: 100-continue", "--data-binary", "@-"]
    assert subprocess.run(command, input=body, capture_output=True, check=True).stdout


def test_a_caller_that_hangs_up(gateway):
    """Its call is cancelled, which `test_operation.py` sees at the server; the log says so, and the next call works."""
    body = {"query": "flu", "documents": ["influenza and masks " * 20] * 64}
    with gateway.connect() as connection:
        connection.sendall(post("/rerank", body, "X-Request-Id: hung-up"))
    wait_for(lambda: any("id=hung-up " in line and " status=499 " in line for line in gateway.log))
    assert httpx.post(f"{gateway.url}/rerank", json={"query": "flu", "documents": ["a"]}, timeout=30).status_code == 200


def test_overload_is_429(demo_artefacts, tmp_path):
    """More work than may wait: some calls are answered, the others are told to come again."""
    edit = (PATIENT[0], PATIENT[1], PATIENT[1].replace('"3"', '"0.01"'))
    repository = lay_out(tmp_path / "repository", demo_artefacts, edit)
    body = {"query": "flu", "documents": ["influenza and masks " * 4] * 32}
    with (
        quick_server(repository) as server,
        GatewayProcess(server.grpc_url) as gateway,
        ThreadPoolExecutor(64) as threads,
        httpx.Client(timeout=60) as web,
    ):
        answers = list(threads.map(lambda _: web.post(f"{gateway.url}/rerank", json=body), range(64)))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        wait_for(lambda: httpx.get(f"{gateway.url}/health").status_code == 200)


def test_keys_from_file_and_environment(server, tmp_path):
    (tmp_path / "keys").write_text("# operators\nfirst\n\nsecond\n")
    env = {"TRITON_RERANK_GATEWAY_API_KEYS": "third, fourth", "TRITON_RERANK_GATEWAY_MODEL_ALIAS": "a,b"}
    env["TRITON_RERANK_GATEWAY_APIKEYS"] = "a misspelt name"
    with GatewayProcess(server.grpc_url, "--api-key-file", str(tmp_path / "keys"), env=env) as gateway:
        for key, status in (("first", 200), ("second", 200), ("third", 200), ("fourth", 200), ("# operators", 401)):
            headers = {"authorization": f"Bearer {key}"}
            body = {"query": "flu", "documents": ["a"]}
            assert httpx.post(f"{gateway.url}/rerank", json=body, headers=headers).status_code == status
        assert "warning: TRITON_RERANK_GATEWAY_APIKEYS is not an option of the gateway" in gateway.log
        assert not [line for line in gateway.log if "API_KEYS" in line]
        names = [model["id"] for model in httpx.get(f"{gateway.url}/v1/models").json()["data"]]
        assert names[-2:] == ["a", "b"]


def test_a_port_that_is_taken(gateway):
    other = GatewayProcess("localhost:1")
    command = [*other.command, "--port", str(gateway.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode > 0
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_https(server, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "chain.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    options = ("--ssl-certfile", str(tmp_path / "chain.pem"), "--ssl-keyfile", str(tmp_path / "key.pem"))
    with GatewayProcess(server.grpc_url, *options) as gateway:
        command = ["curl", "-sS", "--fail", "--cacert", tmp_path / "roots.pem", f"{gateway.url}/health"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b'{"status":"ok"}'


def test_after_sigterm_it_is_not_ready_and_still_serves():
    """Until --drain has passed; a second signal ends it at once."""
    with FakeTriton() as triton, GatewayProcess(triton.url, "--drain", "600") as gateway:
        assert httpx.get(f"{gateway.url}/v1/health/ready").status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{gateway.url}/v1/health/ready").status_code == 503)
        assert httpx.post(f"{gateway.url}/rerank", json={"query": "q", "documents": ["1"]}).status_code == 200
        assert httpx.get(f"{gateway.url}/v1/health/live").status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0


def test_after_sigterm_the_call_in_flight_is_answered():
    with FakeTriton() as triton, GatewayProcess(triton.url) as gateway, ThreadPoolExecutor(1) as thread:
        body = {"query": "q", "documents": ["1"]}
        assert httpx.post(f"{gateway.url}/rerank", json=body).status_code == 200
        release = threading.Event()
        triton.faults.append(lambda request, context: release.wait(60) and None)
        answer = thread.submit(httpx.post, f"{gateway.url}/rerank", json=body, timeout=60)
        wait_for(lambda: not triton.faults)
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not_listening(gateway))
        release.set()
        assert answer.result().status_code == 200
        assert gateway.process.wait(60) == 0


def not_listening(gateway):
    try:
        gateway.connect().close()
    except ConnectionError:
        return True
    return False


def test_a_connection_without_end_does_not_hold_the_gateway_up():
    with FakeTriton() as triton, GatewayProcess(triton.url) as gateway, gateway.connect() as idle:
        httpx.get(f"{gateway.url}/health")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
        assert status_of(read_all(idle)) == 0


def test_a_reranker_that_goes_and_comes_back():
    with FakeTriton() as triton:
        port = triton.port
        with GatewayProcess(triton.url) as gateway:
            body = {"query": "q", "documents": ["1"]}
            assert httpx.post(f"{gateway.url}/rerank", json=body).status_code == 200
            triton.stop()
            gone = wait_for(lambda: (a := httpx.post(f"{gateway.url}/rerank", json=body)).status_code == 503 and a)
            assert gone.headers["retry-after"] == "5"
            wait_for(lambda: httpx.get(f"{gateway.url}/health").status_code == 503)
            with FakeTriton(port=port):
                wait_for(lambda: httpx.get(f"{gateway.url}/health").status_code == 200)
                assert httpx.post(f"{gateway.url}/rerank", json=body).status_code == 200


def curl_commands():
    pages = (ROOT / "README.md", ROOT / "docs" / "gateway.md")
    shell = [(page.name, block.text) for page in pages for block in blocks(page) if block.language == "bash"]
    return [pytest.param(text, id=name) for name, text in shell if text.startswith("curl")]


@pytest.mark.parametrize("command", curl_commands())
def test_the_curl_calls_of_the_pages(gateway, command):
    command = command.replace("localhost:8080", f"127.0.0.1:{gateway.port}").replace("curl -s", "curl -sS --fail")
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["results"][0]["index"] == 1
