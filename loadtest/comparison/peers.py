"""The rerankers that compare.py compares with: an environment and a process for each."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from comparison.peer_worker import run_calls
from load.workload import Search
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer
from triton_rerank_build.support.files import locked

HERE = Path(__file__).parent
OURS = "triton-rerank"


class PeerError(Exception):
    """A peer can't be installed, does not load or fails; the message contains the reason."""


@dataclass(frozen=True)
class Peer:
    """A reranker to compare with.

    Attributes:
        name: Key in peer_worker.py's LOADERS.
        label: Name in tables and plots.
        precision: Precision of its arithmetic, which sets the tolerance of its logits.
        requirements: Arguments of pip; peers with the same ones share an environment.
        unwanted: Dependencies of `requirements` to uninstall, since they break the peer.
    """

    name: str
    label: str
    precision: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


ST = ("sentence-transformers==6.2.0", "transformers==5.23.0")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("st-torch-fp32", "sentence-transformers, torch fp32", "fp32", ST),
        Peer("st-torch-bf16", "sentence-transformers, torch bf16", "bf16", ST),
        # The onnx extra of 6.2 conflicts with every version of transformers that 6.2 supports.
        Peer("st-onnx", "sentence-transformers, onnx", "fp32", ("sentence-transformers[onnx]==5.7.0",)),
        # OpenVINO's default precision: bf16 if the processor supports it. `import transformers` fails if the installed
        # torchvision was built for another PyTorch build than the CPU's.
        Peer(
            "st-openvino",
            "sentence-transformers, openvino",
            "bf16",
            ("sentence-transformers[openvino]==6.2.0",),
            ("torchvision",),
        ),
        Peer("flagembedding", "FlagEmbedding FlagReranker, batch 16", "fp32", ("FlagEmbedding==1.4.2",)),
        Peer("infinity", "infinity-emb, torch", "fp32", ("infinity-emb[torch]==0.0.78",)),
    )
}


@dataclass(frozen=True)
class Answer:
    """Result of one run: seconds for all searches, and the logits of each search."""

    seconds: float
    logits: list[list[float]]


class Ours:
    """triton-rerank: its server on this machine, called over gRPC with its client."""

    def __init__(self, repository: Path) -> None:
        self._server = EmbeddedServer(repository).start()
        self._client = RerankClient(self._server.grpc_url, timeout=None)
        self.versions = {OURS: version("triton-rerank"), "openvino": version("openvino")}

    def answer(self, searches: Sequence[Search], callers: int) -> Answer:
        """Score `searches`, `callers` at a time."""

        def score(query: str, documents: Sequence[str]) -> list[float]:
            logits = [0.0] * len(documents)
            for result in self._client.rerank(query, documents):
                logits[result.index] = result.logit
            return logits

        return Answer(*run_calls(score, [(search.query, search.documents) for search in searches], callers))

    def close(self) -> None:
        """Close the client and stop the server."""
        self._client.close()
        self._server.stop()


class Worker:
    """A peer in a process of its own, stopped (SIGSTOP) between its runs.

    Args:
        peer: The peer.
        python: Interpreter of the peer's environment.
        checkpoint: Folder of the checkpoint.
        folder: Folder for the peer's conversions of the checkpoint.

    Raises:
        PeerError: The peer does not load.
    """

    def __init__(self, peer: Peer, python: Path, checkpoint: Path, folder: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (open until the process ends)
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [python, HERE / "peer_worker.py", peer.name, checkpoint, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        )
        try:
            self.versions: dict[str, str] = self._read()["versions"]
        except PeerError:
            self.close()
            raise

    def answer(self, searches: Sequence[Search], callers: int) -> Answer:
        """Score `searches`, `callers` at a time.

        Raises:
            PeerError: The process ended.
        """
        self._process.send_signal(signal.SIGCONT)
        job = {"searches": [(search.query, search.documents) for search in searches], "callers": callers}
        with contextlib.suppress(BrokenPipeError):  # the process has ended; `_read` raises the reason
            print(json.dumps(job), file=self._process.stdin, flush=True)
        return Answer(**self._read())

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # input that the process did not read
                pipe.close()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            self._process.send_signal(signal.SIGSTOP)
            found: dict[str, Any] = json.loads(line)
            return found
        self._errors.seek(0)
        raise PeerError(f"ended with status {self._process.wait()}: {last_line(self._errors.read())}")


def environment(peer: Peer, folder: Path) -> Path:
    """Return the interpreter of the peer's virtual environment below `folder`; create the environment if it is missing.

    PyTorch is installed first: this machine's build, in the version of this project's environment.

    Raises:
        PeerError: pip can't install the peer.
    """
    torch = version("torch").split("+")[0]
    digest = hashlib.sha256(json.dumps([sys.version, torch, *peer.requirements, *peer.unwanted]).encode())
    target = folder / f"venv-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{target.name}.lock", wait=True):
        python = target / "bin/python"
        if not (target / ".installed").exists():
            print(f"{peer.name}: installing {' '.join(peer.requirements)} in {target} ...", file=sys.stderr)
            shutil.rmtree(target, ignore_errors=True)
            venv.create(target, with_pip=True)
            output = run([HERE.parents[1] / "build/torch.sh", target], os.environ | {"TORCH_VERSION": torch})
            output += run([python, "-m", "pip", "install", *peer.requirements, f"torch=={torch}"])
            if peer.unwanted:
                output += run([python, "-m", "pip", "uninstall", "--yes", *peer.unwanted])
            (target / ".installed").write_bytes(output)
    return python


def run(command: Sequence[str | Path], env: dict[str, str] | None = None) -> bytes:
    """Run a command and return its output.

    Raises:
        PeerError: The command failed.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False)
    if done.returncode:
        raise PeerError(last_line(done.stdout))
    return done.stdout


def last_line(output: bytes) -> str:
    """Last line that a failed program printed: the reason."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


class Contenders:
    """triton-rerank and the peers, each loaded at its first run and kept.

    Args:
        checkpoint: Folder of the checkpoint that all contenders load.
        repository: Model repository with the same checkpoint.
        folder: Folder of the peers' environments and conversions.
        warm_up: Search that each contender scores before it is measured.
    """

    def __init__(self, checkpoint: Path, repository: Path, folder: Path, warm_up: Search) -> None:
        self._checkpoint, self._repository, self._folder, self._warm_up = checkpoint, repository, folder, warm_up
        self._ready: dict[str, Ours | Worker] = {}

    def get(self, name: str) -> "Ours | Worker":
        """Return a contender, loaded and warm.

        Raises:
            PeerError: The peer can't be installed or does not work.
        """
        if name not in self._ready:
            print(f"{name}: loading ...", file=sys.stderr)
            self._ready[name] = made = self._make(name)
            made.answer([self._warm_up], 1)
        return self._ready[name]

    def _make(self, name: str) -> "Ours | Worker":
        if name == OURS:
            return Ours(self._repository)
        python = environment(PEERS[name], self._folder)
        return Worker(PEERS[name], python, self._checkpoint, self._folder / self._checkpoint.name)

    def __enter__(self) -> "Contenders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for contender in self._ready.values():
            contender.close()
