"""Keeps one tritonserver from outliving whoever started it: `python -m triton_rerank_build.serving.supervisor`.

Whatever ends the starter (a clean stop, an exception, SIGKILL), its end of our standard input closes; the server is
then told to stop, killed if it takes longer than its exit timeout, and what it leaves behind is removed. Should this
process itself be killed, the kernel tells the server.

A parent-death signal set by the starter alone would not do: the kernel sends it when the *thread* that started the
server ends, which in a test runner or a thread pool is long before the process does.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
# Beyond tritonserver's own --exit-timeout-secs it hangs, and is killed.
KILL_AFTER_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command after `--` until it ends or standard input closes; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="removed at the end")
    parser.add_argument("--shm-prefix", required=True, help="files of /dev/shm that start so are removed at the end")
    parser.add_argument("--exit-timeout", type=float, required=True, help="seconds the server may take to stop")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    server = subprocess.Popen(args.command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)  # noqa: PLW1509
    threading.Thread(target=_set_at_end_of_input, args=(stop,), daemon=True).start()
    threading.Thread(target=_set_at_exit, args=(server, stop), daemon=True).start()
    _wait(stop)
    try:
        return _stop(server, args.exit_timeout + KILL_AFTER_S)
    finally:
        _kill_rest_of_group()
        shutil.rmtree(args.folder, ignore_errors=True)
        for leftover in Path("/dev/shm").glob(f"{args.shm_prefix}*"):
            leftover.unlink(missing_ok=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _set_at_end_of_input(stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    stop.set()


def _set_at_exit(server: "subprocess.Popen[bytes]", stop: threading.Event) -> None:
    server.wait()
    stop.set()


def _wait(stop: threading.Event) -> None:
    # In slices, so that signal handlers run.
    while not stop.wait(0.5):
        pass


def _stop(server: "subprocess.Popen[bytes]", patience_s: float) -> int:
    if server.poll() is None:
        server.terminate()
    try:
        return server.wait(patience_s)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def _kill_rest_of_group() -> None:
    """The Python stubs of a server that was killed never end by themselves; they are in our process group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            pid = int(stat.parent.name)
            _state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == os.getpgrp() and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
