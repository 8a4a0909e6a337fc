"""A server that Docker starts, in the place of the local one: `make test-container IMAGE=...`."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

from support import ROOT
from triton_rerank import RerankClient
from triton_rerank_build.serving.listeners import LOOPBACK, Listener, with_free_ports

IMAGE = os.environ.get("RERANK_TEST_IMAGE", "")
"""Image of the server for tests that take one; empty for the local server."""
START_TIMEOUT_S = 600
# The packages that a model of the repository imports, in the versions of constraints.txt.
PACKAGES = ("tokenizers",)
# NVIDIA's image lacks them, and its Debian refuses pip without the variable. An image of deploy/Dockerfile has them.
START = 'export PIP_BREAK_SYSTEM_PACKAGES=1; pip3 install --quiet --no-deps $0 && exec tritonserver "$@"'


class ContainerServer:
    """tritonserver in a container of `IMAGE`, on the GPU's config.pbtxt. Has the addresses of an `EmbeddedServer`.

    Args:
        repository: Model repository; its links are followed, under the same paths, inside the container.
        options: Options of `docker run`, such as "--gpus=all".
    """

    def __init__(self, repository: Path, options: str = os.environ.get("RERANK_TEST_DOCKER_OPTIONS", "")) -> None:
        self._repository = repository.resolve()
        self._options = shlex.split(options)
        ports = with_free_ports([Listener(name, LOOPBACK, 0) for name in ("grpc", "http", "metrics")])
        self._ports = dict(zip((8001, 8000, 8002), ports, strict=True))
        self.grpc_url = self._ports[8001].url
        self.http_url = self._ports[8000].url
        self.metrics_url = f"http://{self._ports[8002].url}/metrics"

    def command(self) -> list[str]:
        """The command line of Docker."""
        targets = {path.resolve().parent for path in self._repository.rglob("*") if path.is_symlink()}
        constraints = (ROOT / "constraints.txt").read_text()
        packages = [re.search(rf"^{name}==\S+$", constraints, re.M)[0] for name in PACKAGES]
        return [
            *("docker", "run", "--rm", "--init", "--shm-size=1g"),
            *(f"--publish={LOOPBACK}:{listener.port}:{port}" for port, listener in self._ports.items()),
            *(f"--volume={folder}:{folder}:ro" for folder in sorted({self._repository, *targets})),
            *(*self._options, IMAGE, "bash", "-c", START, " ".join(packages)),
            *(f"--model-repository={self._repository}", "--disable-auto-complete-config", "--exit-timeout-secs=5"),
        ]

    def __enter__(self) -> "ContainerServer":
        self._process = subprocess.Popen(self.command())
        deadline = time.monotonic() + START_TIMEOUT_S
        with RerankClient(self.grpc_url, max_retries=0) as client:
            while not client.is_ready(timeout=60):
                if self._process.poll() is not None:
                    raise RuntimeError(f"`{shlex.join(self.command())}` ended with status {self._process.returncode}")
                if time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"{IMAGE} scored no pair within {START_TIMEOUT_S} s")
                time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # Docker passes the signal on
        self._process.wait()
