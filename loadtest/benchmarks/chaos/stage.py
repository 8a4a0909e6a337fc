"""What the events act on: servers and a gateway as users run them, in processes of their own, and proxies."""

import contextlib
import re
import resource
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.chaos.model import Model
from benchmarks.chaos.proxy import Proxy
from load.programs import Gateway, Program
from triton_rerank import RerankClient

NUM_SERVERS = 3
SHM_MB = 64
# A mount namespace with a small /dev/shm. What the program starts is ended when this process is.
OWN_SHM = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={SHM_MB}m tmpfs /dev/shm && exec "$@"', "sh")
PROBE_TIMEOUT_S = 2.0


def can_mount() -> bool:
    """Whether servers can have a /dev/shm of their own."""
    return subprocess.run([*OWN_SHM, "true"], capture_output=True, check=False).returncode == 0


class Server(Program):
    """`triton-rerank-build serve`."""

    def __init__(self, model: Model, log: Path, *, own_shm: bool) -> None:
        ports = [f"--{service}-port=0" for service in ("grpc", "http", "metrics")]
        arguments = ["serve", "--repository", str(model.repository), "--log", str(log), *ports]
        wrapper = OWN_SHM if own_shm else ()
        super().__init__("triton_rerank_build.cli.main", arguments, r"^ready: gRPC \S+:(\d+) ", wrapper)

    def tritonserver(self) -> psutil.Process:
        """The process of tritonserver."""
        return next(process for process in self.processes() if process.name() == "tritonserver")

    def backend(self, model: str) -> psutil.Process:
        """The Python process of a model."""
        return next(process for process in self.processes() if f"{model}_0_0" in process.cmdline())


class Stage:
    """Three servers, each behind a proxy, and a gateway in front of the proxies.

    Args:
        models: The model that is served, and the one that `roll` changes to.
        folder: For logs.
        own_shm: Whether each server has a /dev/shm of its own.
    """

    def __init__(self, models: Sequence[Model], folder: Path, *, own_shm: bool) -> None:
        self.models = models
        self.folder = folder
        self.own_shm = own_shm
        self.serving: set[int] = {0}
        """Index of each model that a call may be answered by."""
        self.servers: list[Server] = []
        self.proxies: list[Proxy] = []
        self.versions: dict[str, int] = {}
        """`model_version` -> the model that it stands for, as `model_info` of the servers says."""
        self.notes: list[str] = []
        """What an event found besides the outcomes of the steady callers."""
        self._started = 0
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Stage":
        with self._cleanup:
            self._cleanup.callback(self._stop_servers)
            for _ in range(NUM_SERVERS):
                self.servers.append(self.start_server(0))
            self.proxies = [self._cleanup.enter_context(Proxy(server.port)) for server in self.servers]
            self.gateway = Gateway(self.urls)
            self._cleanup.callback(self.gateway.stop)
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def urls(self) -> list[str]:
        """Addresses of the proxies, which callers take for servers."""
        return [proxy.url for proxy in self.proxies]

    def start_server(self, model: int) -> Server:
        """Another server, ready."""
        self._started += 1
        log = self.folder / f"server-{self._started}.log"
        log.unlink(missing_ok=True)
        server = Server(self.models[model], log, own_shm=self.own_shm)
        with RerankClient(f"127.0.0.1:{server.port}") as client:
            info = client.model_info(timeout=60)
        known = self.versions.setdefault(info.model_version or "", model)
        if info.checkpoint != self.models[model].name or known != model:
            raise SystemExit(f"model_info says {info.checkpoint} {info.model_version}, not {self.models[model].name}")
        return server

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Wait until every server scores a pair; whether they do in time."""
        end = time.monotonic() + timeout_s
        for url in self.urls:
            with RerankClient(url, max_retries=0) as client:
                while not client.is_ready(timeout=PROBE_TIMEOUT_S):
                    if time.monotonic() > end:
                        return False
                    time.sleep(0.1)
        return True

    def _stop_servers(self) -> None:
        with ThreadPoolExecutor(NUM_SERVERS) as pool:
            list(pool.map(Server.stop, self.servers))

    def shm_of(self, index: int) -> Path:
        """The /dev/shm of a server, as this process sees it."""
        return Path(f"/proc/{self.servers[index].tritonserver().pid}/root/dev/shm")


def limit_memory(process: psutil.Process, spare_mb: int | None) -> None:
    """Let a process have so much more memory than now, or any amount."""
    limit = resource.RLIM_INFINITY
    if spare_mb is not None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        limit = (int(re.search(r"VmData:\s+(\d+)", status)[1]) << 10) + (spare_mb << 20)
    process.rlimit(psutil.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
