"""How the health check ends a server that does not react to SIGTERM, with small programs in place of tritonserver."""

import signal
import subprocess
import sys

import pytest

from support import ROOT

# Ignores SIGTERM, as tritonserver does when it hangs at its exit; its child has the name of Triton's stub and ends.
SERVER = """
import ctypes, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    ctypes.CDLL(None).prctl(15, b"triton_python_b")  # PR_SET_NAME
    if sys.argv[1] == "dead":
        os._exit(1)
    time.sleep(20)
time.sleep(0.2)
print(os.getpid(), flush=True)
time.sleep(60)
"""
INIT = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"


def check(pid):
    command = [sys.executable, ROOT / "deploy/healthcheck.py", f"--stop-pid={pid}", "--timeout=1"]
    return subprocess.run([*command, "--url=http://127.0.0.1:1"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("init", [False, True], ids=["process 1", "child of init"])
def test_a_server_with_a_dead_process_is_killed_if_it_does_not_end(init):
    command = [sys.executable, "-c", *([INIT] if init else []), SERVER, "dead"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        server = int(process.stdout.readline())
        done = check(process.pid)
        assert (done.returncode, f"tritonserver, process {server}, is ended" in done.stderr) == (1, True)
        assert process.wait(10) == (256 if init else 0) - signal.SIGKILL


def test_a_server_whose_processes_live_is_not_ended():
    with subprocess.Popen([sys.executable, "-c", SERVER, "alive"], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        assert check(process.pid).stderr.startswith("unhealthy: no answer")
        assert process.poll() is None
        process.kill()
