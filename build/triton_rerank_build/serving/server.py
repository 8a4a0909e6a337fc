"""The laptop server: the real tritonserver binary from PyPI on a committed model repository, no GPU, no Docker."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from triton_rerank_build.errors import ServerStartError
from triton_rerank_build.serving import tritonserver
from triton_rerank_build.serving.ensembles import installed_ensembles, load_arguments
from triton_rerank_build.serving.listeners import LOOPBACK, Listener, with_free_ports
from triton_rerank_build.serving.log import TAIL_LINES, last_crash, open_log, tail
from triton_rerank_build.serving.supervisor import READY, remove_shared_memory
from triton_rerank_build.support.progress import logger

POLL_S = 0.05


class EmbeddedServer:
    """A tritonserver that belongs to this process: it is restarted after a crash and ends with this process.

    Use it as a context manager, or call `start()` and `stop()`. The server is ready when every loaded ensemble has
    scored a pair.

    A supervisor process restarts the server if tritonserver or the Python process of a model ends. After five restarts
    within five minutes it gives up, `running` becomes False, and `reason` says why.

    Args:
        repository: Model repository folder, with its artefacts installed.
        runtime: "openvino" (configs/cpu.pbtxt, on the CPU) or "onnxruntime" (the GPU's config.pbtxt, through a
            stand-in of NVIDIA's backend).
        model: Load this ensemble only, "reranker" or "late_interaction"; by default every installed one.
        grpc_port: Port to listen on for gRPC; 0 for a free one.
        http_port: For HTTP.
        metrics_port: For metrics.
        host: IPv4 address for gRPC; 0.0.0.0 for every network.
        http_host: IPv4 address for HTTP. Not `host` by default: a small HTTP request can end Triton 2.51 (SECURITY.md).
        metrics_host: IPv4 address for metrics.
        log: File that receives the server's log; by default it is kept for `log_tail` only.
        start_timeout_s: Seconds until the first pair must have been scored.
        exit_timeout_s: Seconds that requests in flight get to finish when the server stops. 0 kills the server at
            once, so that late interaction's cache is not saved either.
        restart: Whether to restart the server after a crash.
        arguments: More command line options for tritonserver.

    Raises:
        ServerStartError: By `start()`: wrong platform, port or log in use, or the server failed; with the log's tail.
        RepositoryError: By `start()`: no artefact is installed, or one differs from its manifest.
        MissingExtraError: By `start()`: a package of the `server` extra is missing.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        runtime: str = "openvino",
        model: str | None = None,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        host: str = LOOPBACK,
        http_host: str = LOOPBACK,
        metrics_host: str = LOOPBACK,
        log: str | os.PathLike[str] | None = None,
        start_timeout_s: float = 300.0,
        exit_timeout_s: float = 10.0,
        restart: bool = True,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.repository = Path(repository).resolve()
        self.runtime = runtime
        self.models: tuple[str, ...] = ()
        self.log_path = Path(log).resolve() if log is not None else None
        self.reason: str | None = None
        """Why the server ended by itself, or None."""
        self._model = model
        self._asked = (
            Listener("grpc", host, grpc_port),
            Listener("http", http_host, http_port),
            Listener("metrics", metrics_host, metrics_port),
        )
        self._listeners: tuple[Listener, ...] = self._asked
        self._log: BinaryIO | None = None
        self._start_timeout_s = start_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._restart = restart
        self._arguments = arguments
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._events: threading.Thread | None = None
        self._was_ready = False
        self._cleanup = contextlib.ExitStack()

    @property
    def grpc_url(self) -> str:
        """Address for gRPC clients on this machine, "host:port"."""
        return self._listeners[0].url

    @property
    def http_url(self) -> str:
        """Address of Triton's HTTP endpoints, "host:port"."""
        return self._listeners[1].url

    @property
    def metrics_url(self) -> str:
        """Prometheus metrics, a whole URL."""
        return f"http://{self._listeners[2].url}/metrics"

    @property
    def running(self) -> bool:
        """Whether the server runs or is being restarted."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> "EmbeddedServer":
        """Start tritonserver and wait until every loaded ensemble has scored a pair.

        Returns:
            This server, so that `EmbeddedServer(repository).start()` is one expression.
        """
        if self.running:
            raise ServerStartError(f"this server already runs on {self.grpc_url}")
        self.stop()  # what a server that ended by itself has left
        with self._cleanup:
            self._supervisor = self._launch()
            self._was_ready = False
            self._events = threading.Thread(target=self._read_events, args=(self._supervisor,), daemon=True)
            self._events.start()
            try:
                self._wait_until_ready(self._supervisor)
                self._tell_ready(self._supervisor)
            except BaseException:
                self._stop_supervisor()
                raise
            self._cleanup = self._cleanup.pop_all()
        return self

    def stop(self) -> None:
        """Stop the server; requests in flight get `exit_timeout_s` to finish. Does nothing if it does not run."""
        self._stop_supervisor()
        self._cleanup.close()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server ends by itself; its exit status, or None if it still runs after `timeout_s`."""
        if self._supervisor is None:
            return None
        try:
            status = self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._join_events()
        return status

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last errors and crashes in the server's log, or its last lines if it has none."""
        return "(no log)" if self._log is None or self._log.closed else tail(self._log, lines)

    def __enter__(self) -> "EmbeddedServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> "subprocess.Popen[bytes]":
        """Start the supervisor; `_cleanup` removes what the server leaves behind."""
        installation = tritonserver.find(self.runtime)
        chosen = installed_ensembles(self.repository, self._model)
        self.models = tuple(layout.ensemble for layout in chosen)
        self._listeners = with_free_ports(self._asked)
        self._log = self._cleanup.enter_context(open_log(self.log_path))
        folder = Path(tempfile.mkdtemp(prefix="triton-rerank-"))
        shm_prefix = f"triton_rerank_{secrets.token_hex(6)}_"
        # The supervisor does the same at its end, but it may be killed.
        self._cleanup.callback(remove_shared_memory, shm_prefix)
        self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        loads = load_arguments(self.repository, chosen)
        command = [
            *(sys.executable, "-m", "triton_rerank_build.serving.supervisor"),
            *("--folder", str(folder), "--shm-prefix", shm_prefix, "--exit-timeout", str(self._exit_timeout_s)),
            *(("--restart",) if self._restart else ()),
            "--",
            *installation.command(self.repository, folder, self._listeners, shm_prefix),
            f"--exit-timeout-secs={int(self._exit_timeout_s)}",
            *loads,
            *tritonserver.restrictions(loads, self._arguments),
            *self._arguments,
        ]
        self.reason = None
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=installation.environment(),
            start_new_session=True,  # Ctrl-C in a terminal reaches this process only, which then stops the server
        )

    def _stop_supervisor(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        if supervisor.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.close()
        supervisor.wait()
        self._join_events()
        if supervisor.stdout is not None:
            supervisor.stdout.close()

    def _tell_ready(self, supervisor: "subprocess.Popen[bytes]") -> None:
        self._was_ready = True
        if supervisor.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.write(READY)
                supervisor.stdin.flush()

    def _join_events(self) -> None:
        """Wait until the supervisor's last event is read, which sets `reason`."""
        if self._events is not None and self._events is not threading.current_thread():
            self._events.join()

    def _read_events(self, supervisor: "subprocess.Popen[bytes]") -> None:
        """Log restarts, and keep the reason of the last crash."""
        for line in supervisor.stdout or ():
            event = json.loads(line)
            crash = last_crash(self._log) if self._log is not None else None
            reason = f"{event['reason']} ({crash})" if crash else str(event["reason"])
            if event["event"] == "end":
                self.reason = reason
                continue
            logger.warning("%s; restarting the server", reason)
            if self._was_ready:
                self._wait_for_restart(supervisor)

    def _wait_for_restart(self, supervisor: "subprocess.Popen[bytes]") -> None:
        """Log when the restarted server has scored a pair; stop it if it does not in time."""
        started = time.monotonic()
        try:
            self._wait_until_ready(supervisor)
        except ServerStartError as error:
            if supervisor.poll() is None and supervisor.stdin is not None:
                self.reason = str(error)
                with contextlib.suppress(BrokenPipeError):
                    supervisor.stdin.close()
        else:
            logger.warning("ready again after %.1f s: gRPC %s", time.monotonic() - started, self.grpc_url)

    def _wait_until_ready(self, supervisor: "subprocess.Popen[bytes]") -> None:
        from triton_rerank import RerankClient, RerankError

        deadline = time.monotonic() + self._start_timeout_s
        # Triton opens the metrics port last, after it answers on the others.
        listeners = [each for each in self._listeners if f"--allow-{each.service}=false" not in self._arguments]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RerankClient(self.grpc_url, model, max_retries=0)) for model in self.models]
            while True:
                if supervisor.poll() is not None:
                    self._join_events()
                    reason = f"tritonserver ended while starting ({self.reason or 'the supervisor was killed'})"
                    raise ServerStartError(f"{reason}; the end of its log:\n{self.log_tail()}")
                try:
                    if all(each.accepts() for each in listeners):
                        for client in clients:
                            client.rerank("ready?", ["A pair was scored."], timeout=60.0)
                        return
                except RerankError as error:
                    reason = str(error)
                else:
                    reason = "not all of its ports are open"
                if time.monotonic() > deadline:
                    raise ServerStartError(
                        f"tritonserver was not ready after {self._start_timeout_s:.0f} s ({reason}); "
                        f"the end of its log:\n{self.log_tail()}"
                    )
                time.sleep(POLL_S)
