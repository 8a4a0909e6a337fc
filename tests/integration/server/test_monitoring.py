"""Health check, metrics, rules and dashboard against real servers: healthy, busy, and with a dead model process."""

import contextlib
import subprocess
import sys
import threading
import urllib.parse
import urllib.request

import psutil
import pytest

from support import quick_server
from support.deployment import GPU_METRICS, PROMETHEUS_METRICS, ROOT, queries, rules, server_options
from support.monitors import Prometheus, counter, free_port, scrape, triton_process, unsupervised, wait_until
from support.promql import selectors
from triton_rerank import RerankClient, RerankError
from triton_rerank_build import EmbeddedServer

# The gateway's and late interaction's own tests look at these.
ELSEWHERE = ("rerank_gateway_", "late_interaction_")
HEALTH_CHECK = ROOT / "deploy" / "healthcheck.py"


@pytest.fixture(scope="module")
def monitored(tiny_repository):
    """A server with the options of docker-compose.yml, after some work."""
    with quick_server(tiny_repository, arguments=server_options()) as server:
        with RerankClient(server.grpc_url) as client:
            for _ in range(3):
                client.rerank("flu", ["Wash your hands often."] * 70)
        yield server


def health(server, *options):
    command = [sys.executable, HEALTH_CHECK, f"--url=http://{server.http_url}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_series_that_rules_and_panels_read_is_exported(monitored):
    there = scrape(monitored)
    expressions = [rule["expr"] for rule in rules()] + [expression for _, expression in queries()]
    for expression in expressions:
        for name, labels in selectors(expression):
            if ":" in name or name in GPU_METRICS | PROMETHEUS_METRICS or name.startswith(ELSEWHERE):
                continue
            assert any(name == other and labels.items() <= its.items() for other, its, _ in there), f"{name} {labels}"


def test_healthy(monitored):
    result = health(monitored)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_model_that_is_not_there_is_unhealthy(monitored):
    result = health(monitored, "--model=nowhere")
    assert result.returncode == 1
    assert "unhealthy" in result.stderr


def test_no_server_is_unhealthy():
    port = free_port()
    command = [sys.executable, HEALTH_CHECK, f"--url=http://127.0.0.1:{port}"]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 1
    assert b"no answer" in result.stderr


@contextlib.contextmanager
def load(server, timeout=60):
    """Calls, one after another, until the end of the block; failures are part of some tests."""
    over = threading.Event()

    def call():
        with RerankClient(server.grpc_url, max_retries=0, timeout=timeout) as client:
            while not over.is_set():
                with contextlib.suppress(RerankError):
                    client.rerank("flu", ["Wash your hands often."] * 20)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_every_panel_shows_data_of_a_server_under_load(monitored, tmp_path):
    with Prometheus(tmp_path, monitored) as prometheus, load(monitored):
        wait_until(lambda: prometheus.query("reranker:queue_to_compute:ratio1m"))
        for _, expression in queries():
            names = {name for name, _ in selectors(expression)}
            if names & GPU_METRICS or any("gateway" in name or name.startswith(ELSEWHERE) for name in names):
                continue  # neither is here
            wait_until(lambda expression=expression: prometheus.query(expression), 30)
        rate = float(prometheus.query("sum(reranker:pairs:rate1m)")[0]["value"][1])
        assert rate > 0
        assert not prometheus.query('ALERTS{alertstate="firing"}')
        # As the rules count it, and as Triton's own totals have it.
        merged = float(prometheus.query('model:merged_pairs:mean1m{model="tokenizer"}')[0]["value"][1])
        assert merged == pytest.approx(20)


def test_a_dead_tokenizer_behind_a_healthy_port(tiny_repository, tmp_path):
    options = server_options()
    with (
        quick_server(tiny_repository, arguments=options) as server,
        Prometheus(tmp_path, server) as prometheus,
        unsupervised(server),
    ):
        triton_process(server, "tokenizer/1/model.py").kill()
        wait_until(lambda: health(server).returncode)
        assert urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready").status == 200
        with load(server):
            pending = wait_until(lambda: prometheus.query('ALERTS{alertname="RerankerModelDead"}'))
        assert [alert["metric"]["model"] for alert in pending] == ["tokenizer"]


def test_a_dead_cross_encoder_is_unhealthy_under_load_and_the_check_ends_its_server(tiny_repository):
    # The dead process keeps the queue full, as an overload does.
    with EmbeddedServer(tiny_repository, exit_timeout_s=2) as server, contextlib.ExitStack() as callers:
        triton = triton_process(server, "bin/tritonserver")
        stop = f"--stop-pid={triton.pid}"
        for _ in range(40):
            callers.enter_context(load(server, timeout=2))
        assert health(server, stop).returncode == 0  # busy
        process = triton_process(server, "cross_encoder_0_0")
        with unsupervised(server):
            process.kill()
            wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
            for _ in range(2):
                assert health(server, "--timeout=3").returncode == 1
            ended = health(server, stop)
            assert (ended.returncode, "has died" in ended.stderr) == (1, True)
            # Ended with SIGTERM or, where tritonserver hangs at its exit, with SIGKILL.
            wait_until(lambda: triton.status() == psutil.STATUS_ZOMBIE)


def test_the_check_does_not_end_the_server_of_a_paused_process(tiny_repository):
    # Triton answers "Stub process is not healthy" here too.
    with quick_server(tiny_repository) as server:
        triton = triton_process(server, "bin/tritonserver")
        triton_process(server, "cross_encoder_0_0").suspend()
        assert health(server, f"--stop-pid={triton.pid}", "--timeout=3").returncode == 1
        assert health(server, f"--stop-pid={triton.pid}", "--timeout=3").returncode == 1
        assert server.running
        assert triton.is_running()
        assert triton.status() != psutil.STATUS_ZOMBIE


def test_a_dead_late_encoder_is_noticed_though_the_server_caches_vectors(colbert_repository):
    with (
        quick_server(colbert_repository, runtime="onnxruntime") as server,
        RerankClient(server.grpc_url, "late_interaction", max_retries=0, timeout=10) as client,
    ):
        assert client.is_ready()
        assert health(server).returncode == 0
        with unsupervised(server):
            triton_process(server, "late_encoder_0_0").kill()
            wait_until(lambda: not client.is_ready())
            assert health(server).returncode == 1
            assert not client.is_ready()


def test_an_ensemble_counts_a_failure_twice_and_hides_its_reason(tiny_repository):
    # Why the rules look at the models inside it. Should a newer Triton differ, they can be simpler.
    failure = "nv_inference_request_failure"
    with quick_server(tiny_repository) as server, unsupervised(server):
        triton_process(server, "tokenizer/1/model.py").kill()
        with RerankClient(server.grpc_url, max_retries=0) as client, pytest.raises(RerankError, match="not healthy"):
            client.rerank("flu", ["Wash your hands often."])
        assert counter(server, failure, model="tokenizer", reason="BACKEND") == 1
        assert counter(server, failure, model="reranker", reason="OTHER") == 2
        assert counter(server, failure, model="reranker", reason="BACKEND") == 0
