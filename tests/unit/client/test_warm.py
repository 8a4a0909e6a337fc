"""`triton-rerank warm` without late interaction, and interrupted; against the real server: test_late_warm.py."""

import os
import signal
import subprocess

import pytest

from support import CLIENT_COMMAND
from support.fake_triton import FakeTriton, hang
from support.monitors import wait_until
from triton_rerank.cli.main import main

CACHE = {"texts": 7, "bytes": 3_000, "limit_bytes": 10_000, "encoded": 7, "evicted": 0}


@pytest.fixture
def server(monkeypatch):
    with FakeTriton(max_batch_size=128) as running:
        monkeypatch.setenv("TRITON_RERANK_URL", running.url)
        running.first_stage = lambda document: 1.0
        running.about["cache"] = CACHE
        yield running


def documents(tmp_path, count):
    file = tmp_path / "documents.txt"
    file.write_text("".join(f"document {number}\n" for number in range(count)))
    return str(file)


@pytest.mark.parametrize(
    ("cache", "reason"),
    [
        (None, "late_interaction caches no vectors, or its server is of an earlier release"),
        ({**CACHE, "limit_bytes": 0}, "the cache of late_interaction is off: cache_bytes is 0"),
    ],
)
def test_a_model_without_a_cache_is_told(server, tmp_path, capsys, cache, reason):
    server.about["cache"] = cache
    assert main(["warm", documents(tmp_path, 2)]) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no documents: give a FILE"),
        (["--corpus", "{file}", "--template", "{{a}}"], "--template is for FILE"),
        (["{file}", "--fields", "a"], "documents.txt:1: not a JSON object; --fields needs JSON lines"),
    ],
)
def test_what_cannot_be_read_is_told(server, tmp_path, capsys, arguments, reason):
    file = documents(tmp_path, 2)
    assert main(["warm", *(argument.format(file=file) for argument in arguments)]) == 1
    assert reason in capsys.readouterr().err


def test_several_servers_are_each_given_all_documents(server, tmp_path, capsys):
    with FakeTriton(max_batch_size=128) as second:
        second.first_stage, second.about = server.first_stage, server.about
        assert main(["warm", "--url", server.url, "--url", second.url, documents(tmp_path, 20)]) == 0
        for each in (server, second):
            sent = [request for request in each.requests if request.model_name == "late_interaction"]
            assert sum(request.inputs[0].shape[0] for request in sent) == 20
    first, other = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{server.url}: 20 documents are cached")
    assert other.startswith(f"{second.url}: 20 documents are cached")
    assert other.endswith("the cache holds 7 texts in 0.0 MB, 30.0 % of its 0.0 MB")


def test_ctrl_c_says_how_to_go_on(server, tmp_path):
    server.faults.extend([None] * 4 + [hang(30)])
    command = [*CLIENT_COMMAND, "warm", documents(tmp_path, 5_000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: server.requests and not server.faults)
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert "of 5,000 documents; run the command again to go on: what is cached is not encoded again" in stderr
