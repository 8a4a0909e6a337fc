"""Short runs of the load test: Locust under gevent, the client, the real server."""

import json
import os
import subprocess
import sys

import pytest

from load.recording import Recording
from support.deployment import ROOT

SEARCH = {"query": "flu", "documents": ["Wash your hands often.", "Flutes are made of wood."]}


@pytest.fixture
def searches(tmp_path):
    file = tmp_path / "searches.jsonl"
    file.write_text(json.dumps(SEARCH) + "\n")
    return file


def locust(server, tmp_path, *options, seconds=4):
    """Run Locust; return the finished process and its recording."""
    command = [sys.executable, "-m", "locust", f"--locustfile={ROOT / 'loadtest' / 'locustfile.py'}"]
    command += ["--headless", "--only-summary", f"--run-time={seconds}s"]
    command += ["--stop-timeout=60s", f"--recording={tmp_path / 'run.json'}", *options]
    # docker-compose.yml passes the server's address the same way.
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


def test_open_loop_keeps_its_rate_whatever_the_server_does(server, tmp_path, searches):
    result, recording = locust(server, tmp_path, "--users=2", "--rate=10", "--spawn-rate=2", f"--searches={searches}")
    assert result.returncode == 0, result.stderr
    starts = [call.start_s for call in recording.calls]
    assert len(starts) >= 10
    # Two users with a call due every 0.2 s each. A late answer does not delay the next call.
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


def test_a_broken_threshold_is_the_exit_status(server, tmp_path, searches):
    options = ("--users=1", f"--searches={searches}", "--max-p95-ms=0.001")
    result, _ = locust(server, tmp_path, *options, seconds=2)
    assert result.returncode == 1
    assert "threshold broken: p95" in result.stdout


def test_failures_are_told_by_kind(server, tmp_path):
    file = tmp_path / "searches.jsonl"
    file.write_text(json.dumps({"query": "", "documents": ["An empty query is refused."]}) + "\n")
    result, recording = locust(server, tmp_path, "--users=1", f"--searches={file}", seconds=2)
    assert result.returncode == 1
    assert recording.errors().keys() == {"InvalidRequestError"}


def test_make_loadtest_writes_a_report(server, tmp_path, searches):
    report = tmp_path / "report.html"
    command = [sys.executable, ROOT / "loadtest" / "run.py", f"--host={server.grpc_url}", "--sweep=1,2", "--seconds=2"]
    command += [f"--report={report}", "--", f"--searches={searches}"]
    subprocess.run(command, check=True)
    assert "(knee)" in report.read_text()
