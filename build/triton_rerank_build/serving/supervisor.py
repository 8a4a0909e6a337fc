"""Runs one tritonserver and restarts it after a crash: `python -m triton_rerank_build.serving.supervisor`.

The process that starts the supervisor is its owner. The owner holds the other end of two pipes:

- standard input: the owner writes READY once the server has scored a pair. End of file stops the server. The kernel
  closes the pipe however the owner ends (clean stop, exception, SIGKILL), so no server outlives its owner.
- standard output: one JSON object per line for each crash, {"event": "restart" or "end", "reason": "..."}.

Standard error is the log, shared with tritonserver.

A crash is the end of tritonserver, or of one of its Python model processes: Triton 2.51 does not start such a process
again, and every later call to that model fails. A paused process is not a crash.

If the supervisor itself is killed, the kernel terminates tritonserver (PR_SET_PDEATHSIG). The owner can't set that
option on tritonserver directly: the kernel sends the signal when the owner's *thread* ends, not the process.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

READY = b"ready\n"
PR_SET_PDEATHSIG = 1
# tritonserver should end within --exit-timeout-secs. After that and KILL_AFTER_S it is killed. It looks once a second
# whether its models are unloaded, so that an exit takes two seconds and more: a timeout of 0 kills it at once.
KILL_AFTER_S = 5.0
# The server of a dead model process gets this long to answer other models' requests.
CRASH_EXIT_S = 2.0
POLL_S = 0.5
# The supervisor gives up when this many restarts within the window did not help.
MAX_RESTARTS = 5
WINDOW_S = 300.0
STUB = "triton_python_b"  # triton_python_backend_stub, as the kernel shortens it


class Process(NamedTuple):
    """A row of the process table."""

    pid: int
    name: str
    state: str
    parent: int
    group: int


class Supervisor:
    """Keeps the command running until it is asked to stop, or until restarts do not help.

    Args:
        args: Parsed command line, see `main`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._restarts: list[float] = []
        self._instances: dict[int, str] = {}

    def run(self) -> int:
        """Run until standard input closes, a signal arrives, or the last crash; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: self._stop.set())
        threading.Thread(target=self._read_input, daemon=True).start()
        while True:
            # The terminal of the events is not for tritonserver: both of its streams go to the log.
            server = subprocess.Popen(
                self._args.command,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
            reason = self._watch(server)
            patience_s = self._args.exit_timeout + KILL_AFTER_S if reason is None else CRASH_EXIT_S
            if reason is None and not self._args.exit_timeout:
                server.kill()
            status = _end(server, patience_s)
            kill_rest_of_group()
            remove_shared_memory(self._args.shm_prefix)
            if reason is None:
                return _shell_status(status)
            if not self._may_restart(status):
                _tell("end", reason)
                return _shell_status(status)
            _tell("restart", reason)

    def _watch(self, server: "subprocess.Popen[bytes]") -> str | None:
        """Wait for a crash and describe it; None if the server is to stop."""
        suspects: set[int] = set()
        self._instances.clear()
        while not self._stop.wait(POLL_S):
            if (status := server.poll()) is not None:
                return f"tritonserver {describe(status)}"
            dead = self._dead_stubs(server.pid)
            # A stub that Triton unloads is dead for a moment, until Triton reads its status.
            if lasting := dead & suspects:
                names = ", ".join(sorted(self._instances.get(pid, str(pid)) for pid in lasting))
                return f"the Python process of {names} has ended"
            suspects = dead
        return None

    def _dead_stubs(self, server: int) -> set[int]:
        dead = set()
        for process in processes():
            if process.parent != server or process.name != STUB:
                continue
            if process.state in "ZX":
                dead.add(process.pid)
            elif process.pid not in self._instances:
                self._instances[process.pid] = _instance_name(process.pid)
        return dead

    def _may_restart(self, status: int) -> bool:
        """Whether another start may help: no limit is reached, and it was not an error that tritonserver reports."""
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if now - moment < WINDOW_S]
        limit = MAX_RESTARTS if self._args.restart else 0
        if not self._ready.is_set():
            # A wrong configuration ends tritonserver with status 1. A lost race for a lock ends it with a signal.
            limit = 0 if status == 1 else 1
        if len(self._restarts) >= limit:
            return False
        self._restarts.append(now)
        return True

    def _read_input(self) -> None:
        with contextlib.suppress(OSError):
            while line := os.read(sys.stdin.fileno(), 4096):
                if READY in line:
                    self._restarts.clear()
                    self._ready.set()
        self._stop.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Supervise the command after `--`; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="removed at the end")
    parser.add_argument("--shm-prefix", required=True, help="files in /dev/shm with this prefix are removed at the end")
    parser.add_argument("--exit-timeout", type=float, required=True, help="seconds it may take to stop; 0 kills it")
    parser.add_argument("--restart", action="store_true", help="start the command again after a crash")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    try:
        return Supervisor(args).run()
    finally:
        kill_rest_of_group()
        shutil.rmtree(args.folder, ignore_errors=True)
        remove_shared_memory(args.shm_prefix)


def describe(status: int) -> str:
    """How a process ended, from its `Popen.returncode`."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    return f"was ended by signal {-status}"


def processes() -> Iterator[Process]:
    """All processes of this machine or container."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            pid, _, rest = stat.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            state, parent, group = fields.split()[:3]
            yield Process(int(pid), name, state, int(parent), int(group))


def kill_rest_of_group() -> None:
    """Kill the Python stubs of a server that was killed: they are in this process group and never end by themselves."""
    for process in processes():
        if process.group == os.getpgrp() and process.pid != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)


def remove_shared_memory(prefix: str) -> None:
    """Remove what a killed server left in /dev/shm."""
    for leftover in Path("/dev/shm").glob(f"{prefix}*"):
        leftover.unlink(missing_ok=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(server: "subprocess.Popen[bytes]", patience_s: float) -> int:
    if server.poll() is None:
        server.terminate()
    try:
        return server.wait(patience_s)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def _instance_name(pid: int) -> str:
    """Name of a stub's model instance, "tokenizer_0_0": the last but one argument of its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-3].decode()
    except (OSError, IndexError):
        return str(pid)


def _tell(event: str, reason: str) -> None:
    sys.stderr.write(f"supervisor: {reason}; {'starting again' if event == 'restart' else 'giving up'}\n")
    sys.stderr.flush()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({"event": event, "reason": reason}) + "\n")
        sys.stdout.flush()


def _shell_status(status: int) -> int:
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
