"""The supervisor with small programs in place of tritonserver: when it restarts them, and when it gives up."""

import json
import signal
import subprocess
import sys

import pytest

from triton_rerank_build.serving.supervisor import MAX_RESTARTS, READY

CRASH = "kill -SEGV $$"


def supervise(tmp_path, script, *options, ready):
    """(exit status, events, log) of the supervisor whose server runs a shell script."""
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-m", "triton_rerank_build.serving.supervisor", f"--folder={folder}"]
    command += ["--shm-prefix=triton_rerank_no_such_", "--exit-timeout=1", *options, "--", "sh", "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        if ready:
            process.stdin.write(READY)
            process.stdin.flush()
        events = [json.loads(line) for line in process.stdout]
        log = process.stderr.read().decode()
    assert not folder.exists()
    return process.returncode, events, log


@pytest.mark.slow
def test_it_restarts_a_ready_server_and_gives_up_after_repeated_crashes(tmp_path):
    status, events, log = supervise(tmp_path, f"echo started; sleep 1; {CRASH}", "--restart", ready=True)
    assert status == 128 + signal.SIGSEGV
    assert [event["event"] for event in events] == ["restart"] * MAX_RESTARTS + ["end"]
    assert {event["reason"] for event in events} == {"tritonserver was ended by signal 11 (SIGSEGV)"}
    assert log.count("started") == MAX_RESTARTS + 1
    assert "signal 11 (SIGSEGV); giving up" in log


@pytest.mark.parametrize(("script", "status", "starts"), [(CRASH, 128 + signal.SIGSEGV, 2), ("exit 1", 1, 1)])
def test_a_start_is_repeated_once_after_a_crash_and_never_after_an_error(tmp_path, script, status, starts):
    found, events, log = supervise(tmp_path, f"echo started; {script}", "--restart", ready=False)
    assert found == status
    assert log.count("started") == starts
    assert [event["event"] for event in events] == ["restart"] * (starts - 1) + ["end"]


def test_without_restart_the_first_crash_is_the_end(tmp_path):
    status, events, _ = supervise(tmp_path, f"sleep 1; {CRASH}", ready=True)
    assert status == 128 + signal.SIGSEGV
    assert events == [{"event": "end", "reason": "tritonserver was ended by signal 11 (SIGSEGV)"}]
