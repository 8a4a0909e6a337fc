"""The laptop server: the real tritonserver binary from PyPI on a committed model repository, no GPU, no Docker."""

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from triton_rerank_build.errors import ServerStartError
from triton_rerank_build.serving import tritonserver

HOST = "127.0.0.1"
LOG_TAIL_LINES = 25
LOG_TAIL_BYTES = 1 << 16
POLL_S = 0.05


class EmbeddedServer:
    """A tritonserver of its own for this process: started, ready, stopped, and never left behind.

    Use it as a context manager, or call `start()` and `stop()`. Ports that are 0 are chosen free ones. The server
    listens on 127.0.0.1 alone. It is ready when it has scored one real pair, not when a port is open.

    Args:
        repository: Model repository folder, with its artefacts installed.
        runtime: "openvino" (configs/cpu.pbtxt, on the CPU) or "onnxruntime" (the GPU's config.pbtxt, through a
            stand-in of NVIDIA's backend).
        grpc_port, http_port, metrics_port: Ports to listen on; 0 for a free one.
        log: File that receives the server's log; by default it is kept for `log_tail` alone.
        start_timeout_s: Seconds until the first pair must have been scored.
        exit_timeout_s: Seconds that requests in flight get to finish when the server stops.
        arguments: More command line options for tritonserver.

    Raises:
        ServerStartError: By `start()`: wrong platform, port taken, or the server failed; holds the log's tail.
        RepositoryError: By `start()`: no artefact is installed.
        MissingExtraError: By `start()`: a package of the `server` extra is missing.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        runtime: str = "openvino",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        log: str | os.PathLike[str] | None = None,
        start_timeout_s: float = 300.0,
        exit_timeout_s: float = 10.0,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.repository = Path(repository).resolve()
        self.runtime = runtime
        self.models: tuple[str, ...] = ()
        self._asked_ports = (grpc_port, http_port, metrics_port)
        self._ports: tuple[int, ...] = self._asked_ports
        self.log_path = Path(log).resolve() if log is not None else None
        self._log: BinaryIO | None = None
        self._start_timeout_s = start_timeout_s
        self._exit_timeout_s = exit_timeout_s
        self._arguments = arguments
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def grpc_url(self) -> str:
        """Address for gRPC clients, "host:port"."""
        return f"{HOST}:{self._ports[0]}"

    @property
    def http_url(self) -> str:
        """Address of Triton's HTTP endpoints, "host:port"."""
        return f"{HOST}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        """Prometheus metrics, a whole URL."""
        return f"http://{HOST}:{self._ports[2]}/metrics"

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def start(self) -> "EmbeddedServer":
        """Start tritonserver and wait until it has scored one real pair.

        Returns:
            This server, so that `EmbeddedServer(repository).start()` is one expression.
        """
        if self.running:
            raise ServerStartError(f"this server already runs on {self.grpc_url}")
        installation = tritonserver.find(self.runtime)
        installed = tritonserver.installed_ensembles(self.repository)
        self.models = tuple(layout.ensemble for layout in installed)
        self._ports = free_ports(self._asked_ports)
        folder = Path(tempfile.mkdtemp(prefix="triton-rerank-"))
        self._log = self._open_log()
        shm_prefix = f"triton_rerank_{secrets.token_hex(6)}_"
        command = [
            *(sys.executable, "-m", "triton_rerank_build.serving.supervisor"),
            *(
                "--folder",
                str(folder),
                "--shm-prefix",
                shm_prefix,
                "--exit-timeout",
                str(self._exit_timeout_s),
            ),
            "--",
            *installation.command(self.repository, folder, self._ports, shm_prefix, HOST),
            f"--exit-timeout-secs={int(self._exit_timeout_s)}",
            *tritonserver.load_arguments(self.repository, installed),
            *self._arguments,
        ]
        self._supervisor = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its closing is what stops the server, see _supervisor.py
            stdout=self._log,
            stderr=self._log,
            env=installation.environment(),
            start_new_session=True,  # Ctrl-C in a terminal reaches us, and we stop the server in order
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server; requests in flight get `exit_timeout_s` to finish. Does nothing if it does not run."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        if supervisor.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.close()
        supervisor.wait()
        if self._log is not None:
            self._log.close()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server ends by itself; its exit status, or None if it still runs after `timeout_s`."""
        if self._supervisor is None:
            return None
        try:
            return self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The end of the server's log: its errors if it has any, and never the tables that Triton draws."""
        if self._log is None or self._log.closed:
            return "(no log)"
        end = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), LOG_TAIL_BYTES, max(0, end - LOG_TAIL_BYTES)).decode(errors="replace")
        told = [line for line in text.splitlines() if line.strip() and line[0] not in "+|"]
        errors = [line for line in told if re.match(r"E\d{4} |error:|\[libprotobuf ERROR", line)]
        return "\n".join((errors or told)[-lines:])

    def __enter__(self) -> "EmbeddedServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _open_log(self) -> BinaryIO:
        if self.log_path is None:
            return tempfile.TemporaryFile()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        return self.log_path.open("w+b")

    def _wait_until_ready(self) -> None:
        from triton_rerank import RerankClient, RerankError

        deadline = time.monotonic() + self._start_timeout_s
        # Triton opens the port of its metrics last, after it answers on the others.
        services = zip(("grpc", "http", "metrics"), self._ports, strict=True)
        ports = [port for service, port in services if f"--allow-{service}=false" not in self._arguments]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RerankClient(self.grpc_url, model, max_retries=0)) for model in self.models]
            while True:
                if not self.running:
                    raise ServerStartError(f"tritonserver ended while starting; the end of its log:\n{self.log_tail()}")
                try:
                    if all(map(_listens, ports)):
                        for client in clients:
                            client.rerank("ready?", ["One real pair was scored."], timeout=60.0)
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


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def free_ports(asked: tuple[int, ...], host: str = HOST) -> tuple[int, ...]:
    """The asked ports, 0 replaced by a free one.

    Raises:
        ServerStartError: An asked port is taken.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in asked]
        for candidate, port in zip(sockets, asked, strict=True):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((host, port))
            except OSError as error:
                raise ServerStartError(
                    f"port {port} on {host} can't be used ({error.strerror}): another server may run there; "
                    "stop it or choose other ports"
                ) from error
        return tuple(candidate.getsockname()[1] for candidate in sockets)
