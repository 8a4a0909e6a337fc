"""The local server: starts or reports why not, stops cleanly, and never outlives the process that started it."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from conftest import lay_out
from triton_rerank import RerankClient, ServerUnavailableError
from triton_rerank_build import EmbeddedServer, RepositoryError, ServerStartError

EXECUTABLE = Path(sys.executable).with_name("triton-rerank-build")
OWNER = """
import sys, time
from triton_rerank_build import EmbeddedServer
server = EmbeddedServer(sys.argv[1]).start()
print(server.grpc_url, flush=True)
time.sleep(600)
"""


def tree(process):
    return [process, *process.children(recursive=True)]


def gone(processes, within_s=60):
    return not psutil.wait_procs(processes, timeout=within_s)[1]


def shared_memory(processes):
    """List the server's files in /dev/shm, by the prefix on its command line."""
    words = (word for process in processes for word in process.cmdline())
    (prefix,) = {word.partition("prefix-name=")[2] for word in words if "shm-region-prefix-name=" in word}
    return lambda: list(Path("/dev/shm").glob(f"{prefix}*"))


def test_ready_means_scored_and_metrics_are_served(server):
    with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready") as answer:
        assert answer.status == 200
    with urllib.request.urlopen(server.metrics_url) as answer:
        assert b'nv_inference_request_success{model="reranker",version="1"}' in answer.read()


def test_listens_on_loopback_alone(server):
    port = int(server.grpc_url.rpartition(":")[2])
    addresses = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_whatever_ends_its_owner(demo_repository, kill):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(demo_repository)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline()
    processes = tree(psutil.Process(owner.pid))
    leftovers = shared_memory(processes)
    assert leftovers()
    owner.send_signal(kill)
    owner.wait()
    owner.stdout.close()
    assert gone(processes[1:])
    assert not leftovers()


def test_no_orphan_when_the_supervisor_is_killed(demo_repository):
    server = EmbeddedServer(demo_repository).start()
    try:
        port = f"--grpc-port={server.grpc_url.rpartition(':')[2]}"
        (supervisor,) = [p for p in psutil.Process().children() if port in p.cmdline()]
        processes = tree(supervisor)
        supervisor.kill()
        assert gone(processes)
        assert not server.running
    finally:
        server.stop()


def test_serve_prints_a_call_and_stops_clean_on_sigint_and_sigterm(demo_repository, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [EXECUTABLE, "serve", "--repository", demo_repository, "--log", tmp_path / "serve.log"]
        command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
        serve = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        told = [serve.stdout.readline() for _ in range(5)]
        assert told[0].startswith("ready: gRPC 127.0.0.1:")
        code = "\n".join(line.strip() for line in told[2:])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "Wash your hands" in done.stdout
        processes = tree(psutil.Process(serve.pid))
        serve.send_signal(number)
        assert serve.communicate(timeout=60)[1].endswith("stopped\n")
        assert serve.returncode == 0
        assert gone(processes[1:])
    assert "precision" in (tmp_path / "serve.log").read_text()


def test_a_second_start_of_the_same_object_is_refused_and_stop_is_final(demo_repository):
    server = EmbeddedServer(demo_repository).start()
    with pytest.raises(ServerStartError, match="already runs"):
        server.start()
    server.stop()
    server.stop()
    assert not server.running
    with RerankClient(server.grpc_url, max_retries=0) as client, pytest.raises(ServerUnavailableError):
        client.rerank("q", ["d"], timeout=5)


def test_a_taken_port_is_named(demo_repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=f"port {port} on 127.0.0.1 can't be used"):
            EmbeddedServer(demo_repository, http_port=port).start()


def test_nothing_installed_says_what_to_run(tmp_path):
    repository = lay_out(tmp_path / "repository", tmp_path / "nothing")
    with pytest.raises(RepositoryError, match="run `triton-rerank-build export CHECKPOINT"):
        EmbeddedServer(repository).start()
    with pytest.raises(RepositoryError, match="is no reranker repository"):
        EmbeddedServer(tmp_path / "nothing").start()
    done = subprocess.run(
        [EXECUTABLE, "serve", "--repository", repository], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no checkpoint is installed")


def test_an_unknown_runtime_is_refused(demo_repository):
    with pytest.raises(ServerStartError, match="unknown runtime 'cuda'"):
        EmbeddedServer(demo_repository, runtime="cuda").start()


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("cross_encoder/configs/cpu.pbtxt", "TYPE_FP32", "TYPE_FP99", "TYPE_FP99"),
        ("tokenizer/config.pbtxt", '"default_max_length"', '"default_length"', "default_max_length"),
    ],
)
def test_a_failed_start_shows_why(demo_artefacts, tmp_path, file, old, new, reason):
    repository = lay_out(tmp_path / "repository", demo_artefacts, (file, old, new))
    with pytest.raises(ServerStartError, match="tritonserver ended while starting") as caught:
        EmbeddedServer(repository).start()
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("TYPE_FP32", "TYPE_INT32", "TYPE_INT32 in config, tensor"),
        ('name: "logits" ', 'name: "scores" ', "unexpected output 'scores'"),
        ("dims: [ -1 ] },  # padded", "dims: [ -1 ]  allow_ragged_batch: true },  #", "allows ragged batches"),
    ],
)
def test_the_stand_in_refuses_what_the_native_backend_refuses(demo_artefacts, tmp_path, old, new, reason):
    edits = [("cross_encoder/config.pbtxt", old, new)]
    repository = lay_out(tmp_path / "repository", demo_artefacts, *edits)
    with pytest.raises(ServerStartError) as caught:
        EmbeddedServer(repository, runtime="onnxruntime").start()
    assert reason in str(caught.value)


def test_a_second_start_finds_the_compiled_model(demo_repository, tmp_path):
    folder = tmp_path / "compiled"
    os.environ["RERANK_OPENVINO_CACHE"] = str(folder)
    try:
        with EmbeddedServer(demo_repository):
            blobs = {path: path.stat().st_mtime_ns for path in folder.rglob("*.blob")}
        assert blobs
        with EmbeddedServer(demo_repository):
            assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.blob")} == blobs
    finally:
        del os.environ["RERANK_OPENVINO_CACHE"]


def test_two_tokenizer_instances_give_the_same_scores(demo_artefacts, tmp_path, server):
    edit = ("tokenizer/config.pbtxt", "KIND_CPU  count: 1", "KIND_CPU  count: 2")
    repository = lay_out(tmp_path / "repository", demo_artefacts, edit)
    pairs = [("query", f"document {number} " * number) for number in range(1, 100)]
    with EmbeddedServer(repository) as two, RerankClient(two.grpc_url) as ours, RerankClient(server.grpc_url) as one:
        for mine, theirs in zip(ours.score(pairs), one.score(pairs), strict=True):
            assert mine == pytest.approx(theirs, abs=0.02)
        here = psutil.Process().children(recursive=True)
        assert len([p for p in here if str(repository / "tokenizer/1/model.py") in " ".join(p.cmdline())]) == 2


def test_a_server_that_dies_is_noticed(demo_repository):
    with EmbeddedServer(demo_repository) as server:
        port = f"--grpc-port={server.grpc_url.rpartition(':')[2]}"
        here = psutil.Process().children(recursive=True)
        (triton,) = [p for p in here if p.name() == "tritonserver" and port in p.cmdline()]
        stubs = triton.children(recursive=True)
        assert len(stubs) == 2
        triton.kill()
        assert server.wait(30) is not None
        assert not server.running
        assert gone(stubs)  # Triton's Python processes outlive a killed server by themselves
