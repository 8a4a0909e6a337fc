"""The load test itself: Locust under gevent, the client, the real server."""

import json
import os
import subprocess
import sys

import pytest

from load.recording import Recording
from support import ROOT
from support.gateway import GatewayProcess
from support.monitors import free_port

SEARCH = {"query": "flu", "documents": ["Wash your hands often.", "Flutes are made of wood."]}


@pytest.fixture
def searches(tmp_path):
    file = tmp_path / "searches.jsonl"
    file.write_text(json.dumps(SEARCH) + "\n")
    return file


def locust(server, tmp_path, *options, seconds=4):
    """Locust's result and recording."""
    command = [sys.executable, "-m", "locust", f"--locustfile={ROOT / 'loadtest' / 'locustfile.py'}"]
    command += ["--headless", "--only-summary", f"--run-time={seconds}s"]
    command += ["--stop-timeout=60s", f"--recording={tmp_path / 'run.json'}", *options]
    # docker-compose.yml passes the address in the same variable.
    environment = os.environ | {"LOCUST_HOST": server.grpc_url}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result, Recording.load(tmp_path / "run.json")


def test_closed_loop(server, tmp_path, searches):
    result, recording = locust(server, tmp_path, "--users=4", "--spawn-rate=4", f"--searches={searches}")
    assert result.returncode == 0, result.stderr
    assert len(recording.calls) > 4
    assert {(call.scenario, call.num_documents, call.error) for call in recording.calls} == {("search", 2, "")}
    totals = {total.model: total for total in recording.totals()}
    assert totals.keys() == {"reranker", "tokenizer", "cross_encoder"}
    assert totals["cross_encoder"].pairs == sum(
        int(size) * count for size, count in totals["cross_encoder"].batches.items()
    )


def test_open_loop_keeps_its_rate(server, tmp_path, searches):
    result, recording = locust(server, tmp_path, "--users=2", "--rate=10", "--spawn-rate=2", f"--searches={searches}")
    assert result.returncode == 0, result.stderr
    starts = [call.start_s for call in recording.calls]
    assert len(starts) >= 10
    # Two users, each with a call due every 0.2 s, independent of the call before.
    first_ones = [start for start in starts if not any(abs(start - 0.2 - other) < 1e-3 for other in starts)]
    assert len(first_ones) == 2


def test_generated_texts_and_scenarios(server, tmp_path):
    options = ("--users=2", "--spawn-rate=2", "--tags", "chat")
    result, recording = locust(server, tmp_path, *options, seconds=3)
    assert result.returncode == 0, result.stderr
    assert {(call.scenario, call.num_documents) for call in recording.calls} == {("chat", 20)}


def test_workers_in_processes_of_their_own_report_every_call(server, tmp_path, searches):
    options = ("--users=4", "--spawn-rate=4", "--processes=2", f"--searches={searches}")
    result, recording = locust(server, tmp_path, *options, seconds=6)
    assert result.returncode == 0, result.stderr
    assert len(recording.calls) > 4
    assert not recording.errors()


def test_calls_over_http(server, tmp_path, searches):
    with GatewayProcess(server.grpc_url) as gateway:
        options = ("--users=2", "--spawn-rate=2", f"--searches={searches}", f"--gateway={gateway.url}")
        result, recording = locust(server, tmp_path, *options, seconds=2)
        assert result.returncode == 0, result.stderr
        assert recording.options["gateway"] == gateway.url
        assert {(call.scenario, call.num_documents, call.error) for call in recording.calls} == {("search", 2, "")}
        assert sum(" status=200 " in line for line in gateway.log) >= len(recording.calls)
        assert recording.totals()
    result, recording = locust(server, tmp_path, *options, seconds=2)
    assert set(recording.errors()) == {"ServerUnavailableError"}


def test_a_broken_threshold_is_the_exit_status(server, tmp_path, searches):
    options = ("--users=1", f"--searches={searches}", "--max-p95-ms=0.001")
    result, _ = locust(server, tmp_path, *options, seconds=2)
    assert result.returncode == 1
    assert "threshold broken: p95" in result.stdout


def test_failures_are_recorded_by_kind(server, tmp_path):
    file = tmp_path / "searches.jsonl"
    file.write_text(json.dumps({"query": "", "documents": ["An empty query is refused."]}) + "\n")
    result, recording = locust(server, tmp_path, "--users=1", f"--searches={file}", seconds=2)
    assert result.returncode == 1
    assert recording.errors().keys() == {"InvalidRequestError"}


def test_an_exception_in_a_task_is_no_success(server, tmp_path, searches):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from locust import User, constant, tag, task\n"
        "class Broken(User):\n"
        "    wait_time = constant(1)\n"
        "    @tag('search')\n"
        "    @task\n"
        "    def fail(self): raise KeyError('no such field')\n"
    )
    files = f"--locustfile={ROOT / 'loadtest' / 'locustfile.py'},{broken}"
    result, recording = locust(server, tmp_path, files, "--users=2", "--spawn-rate=2", f"--searches={searches}")
    assert recording.calls
    assert not recording.errors()
    assert "no such field" in result.stdout
    assert result.returncode == 1


@pytest.mark.parametrize("text", ["", "damaged", None])
def test_an_unusable_file_of_searches_is_refused_at_the_start(server, tmp_path, text):
    file = tmp_path / "searches.jsonl"
    if text is not None:
        file.write_text(text)
    report = tmp_path / "report.html"
    done = run_py(f"--host={server.grpc_url}", "--seconds=2", f"--report={report}", "--", f"--searches={file}")
    assert done.returncode == 2
    assert f"--searches: {'' if text is None else file}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not report.exists()


def run_py(*arguments):
    command = [sys.executable, ROOT / "loadtest" / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("scheme", ["http://", "https://", "grpc://"])
def test_a_url_is_refused_and_the_earlier_report_kept(tmp_path, scheme):
    report = tmp_path / "report.html"
    report.write_text("an earlier one")
    done = run_py(f"--host={scheme}localhost:8001", f"--report={report}")
    assert done.returncode == 2
    assert "is not host:port of Triton's gRPC port" in done.stderr
    assert "Traceback" not in done.stderr
    assert report.read_text() == "an earlier one"


def test_a_dead_host_is_refused_before_the_load_and_the_earlier_report_kept(tmp_path):
    report = tmp_path / "report.html"
    report.write_text("an earlier one")
    port = free_port()
    done = run_py(f"--host=127.0.0.1:{port}", f"--report={report}")
    assert done.returncode == 2
    assert f"--host 127.0.0.1:{port}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "callers" not in done.stdout
    assert report.read_text() == "an earlier one"


def test_a_bad_locust_option_keeps_the_earlier_report(server, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("an earlier one")
    done = run_py(f"--host={server.grpc_url}", f"--report={report}", "--", "--no-such-option")
    assert done.returncode == 2
    assert "Locust ended with status 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert report.read_text() == "an earlier one"


def test_locust_alone_takes_a_url(server, tmp_path):
    result, recording = locust(server, tmp_path, f"--host=http://{server.grpc_url}", "--users=1", seconds=2)
    assert result.returncode == 0, result.stderr
    assert recording.calls


def test_make_loadtest_writes_a_report(server, tmp_path, searches):
    report = tmp_path / "report.html"
    command = [sys.executable, ROOT / "loadtest" / "run.py", f"--host={server.grpc_url}", "--sweep=1,2", "--seconds=2"]
    own = tmp_path / "own.json"  # beside the recording that the report is made of
    command += [f"--report={report}", "--", f"--searches={searches}", f"--recording={own}"]
    subprocess.run(command, check=True)
    assert "(knee)" in report.read_text()
    assert Recording.load(own).calls
