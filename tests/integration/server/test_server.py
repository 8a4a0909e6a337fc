"""The laptop server: starts or reports why not, comes back after a crash, and never outlives its owner."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from conftest import lay_out
from support import quick_server, raw
from support.monitors import wait_until
from triton_rerank import RerankClient, RerankError, ServerUnavailableError
from triton_rerank_build import EmbeddedServer, RepositoryError, ServerStartError
from triton_rerank_build.serving import tritonserver
from triton_rerank_build.serving.log import open_log
from triton_rerank_build.support.files import cache_folder

EXECUTABLE = Path(sys.executable).with_name("triton-rerank-build")
FREE_PORTS = ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]
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
def test_no_orphan_whatever_ends_its_owner(tiny_repository, kill):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tiny_repository)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline()
    processes = tree(psutil.Process(owner.pid))
    leftovers = shared_memory(processes)
    assert leftovers()
    owner.send_signal(kill)
    owner.wait()
    owner.stdout.close()
    assert gone(processes[1:])
    assert not leftovers()


def test_no_orphan_when_the_supervisor_is_killed(tiny_repository):
    server = EmbeddedServer(tiny_repository).start()
    try:
        port = f"--grpc-port={server.grpc_url.rpartition(':')[2]}"
        (supervisor,) = [p for p in psutil.Process().children() if port in p.cmdline()]
        processes = tree(supervisor)
        supervisor.kill()
        assert gone(processes)
        assert not server.running
    finally:
        server.stop()


def test_serve_prints_a_call_and_stops_clean_on_sigint_and_sigterm(tiny_repository, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [EXECUTABLE, "serve", "--repository", tiny_repository, "--log", tmp_path / "serve.log"]
        command += FREE_PORTS
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


def test_a_second_start_of_the_same_object_is_refused_and_stop_is_final(tiny_repository):
    server = EmbeddedServer(tiny_repository).start()
    with pytest.raises(ServerStartError, match="already runs"):
        server.start()
    server.stop()
    server.stop()
    assert not server.running
    with RerankClient(server.grpc_url, max_retries=0) as client, pytest.raises(ServerUnavailableError):
        client.rerank("q", ["d"], timeout=5)


def test_a_taken_port_is_named(tiny_repository):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"http port {port} on 127\.0\.0\.1 .* --http-port"):
            EmbeddedServer(tiny_repository, http_port=port).start()


def test_nothing_installed_says_what_to_run(tmp_path):
    repository = lay_out(tmp_path / "repository", tmp_path / "nothing")
    with pytest.raises(RepositoryError, match="run `triton-rerank-build export CHECKPOINT"):
        EmbeddedServer(repository).start()
    with pytest.raises(RepositoryError, match="is not a reranker repository"):
        EmbeddedServer(tmp_path / "nothing").start()
    done = subprocess.run(
        [EXECUTABLE, "serve", "--repository", repository, *FREE_PORTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no checkpoint is installed")


def test_an_unknown_runtime_is_refused(tiny_repository):
    with pytest.raises(ServerStartError, match="unknown runtime 'cuda'"):
        EmbeddedServer(tiny_repository, runtime="cuda").start()


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("cross_encoder/configs/cpu.pbtxt", "TYPE_FP32", "TYPE_FP99", "TYPE_FP99"),
        ("tokenizer/config.pbtxt", '"default_max_length"', '"default_length"', "default_max_length"),
    ],
)
def test_a_failed_start_shows_why(tiny_repository, tmp_path, file, old, new, reason):
    repository = lay_out(tmp_path / "repository", tiny_repository, (file, old, new))
    with pytest.raises(ServerStartError, match="tritonserver ended while starting") as caught:
        EmbeddedServer(repository).start()
    assert reason in str(caught.value)


def test_a_second_start_finds_the_compiled_model(tiny_repository, tmp_path):
    folder = tmp_path / "compiled"
    os.environ["RERANK_OPENVINO_CACHE"] = str(folder)
    try:
        with quick_server(tiny_repository):
            blobs = {path: path.stat().st_mtime_ns for path in folder.rglob("*.blob")}
        assert blobs
        with quick_server(tiny_repository):
            assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.blob")} == blobs
    finally:
        del os.environ["RERANK_OPENVINO_CACHE"]


def test_two_tokenizer_instances_give_the_same_scores(tiny_repository, tmp_path, both_server):
    edit = ("tokenizer/config.pbtxt", "KIND_CPU  count: 1", "KIND_CPU  count: 2")
    repository = lay_out(tmp_path / "repository", tiny_repository, edit)
    pairs = [("query", f"document {number} " * number) for number in range(1, 100)]
    with quick_server(repository) as two, RerankClient(two.grpc_url) as ours, RerankClient(both_server.grpc_url) as one:
        for mine, theirs in zip(ours.score(pairs), one.score(pairs), strict=True):
            assert mine == pytest.approx(theirs, abs=0.02)
        here = psutil.Process().children(recursive=True)
        assert len([p for p in here if str(repository / "tokenizer/1/model.py") in " ".join(p.cmdline())]) == 2


def triton_of(server):
    (triton,) = [p for p in psutil.Process(server._supervisor.pid).children() if p.name() == "tritonserver"]
    return triton


def stub_of(server, instance):
    (stub,) = [p for p in triton_of(server).children() if instance in p.cmdline()]
    return stub


def test_without_restart_a_server_that_dies_is_noticed(tiny_repository):
    with quick_server(tiny_repository, restart=False) as server:
        triton = triton_of(server)
        stubs = triton.children(recursive=True)
        assert len(stubs) == 2
        triton.send_signal(signal.SIGSEGV)
        assert server.wait(30) == 128 + signal.SIGSEGV
        assert not server.running
        assert gone(stubs)  # Triton's Python processes outlive a killed server by themselves
        assert "signal 11 (SIGSEGV)" in server.reason
        # The lines that end the process, and no line of the start.
        assert server.log_tail().splitlines()[0] == "Signal (11) received."
        assert "Started" not in server.log_tail()


def send_chunks(url):
    """A request of 3.6 MB, too many chunks for the stack of Triton 2.51."""
    host, _, port = url.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /v2/models/reranker/infer HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
        with contextlib.suppress(ConnectionError):
            connection.sendall(head.encode() + b"1\r\na\r\n" * 600_000 + b"0\r\n\r\n")


def test_it_comes_back_after_a_crash_and_after_the_death_of_a_model_process(tiny_repository, caplog):
    with quick_server(tiny_repository) as server, RerankClient(server.grpc_url, max_retries=0) as client:
        for crash in (lambda: send_chunks(server.http_url), lambda: stub_of(server, "tokenizer_0_0").kill()):
            before = triton_of(server)
            crash()
            wait_until(lambda before=before: gone([before], 0))
            wait_until(lambda: client.is_ready(timeout=5))
        # Triton never answers the requests that a dying process holds; its restart ends their connection.
        with RerankClient(server.grpc_url, timeout=None) as patient, ThreadPoolExecutor(1) as pool:
            tokenized, _ = raw.statistics(server.grpc_url, "tokenizer")
            stub = stub_of(server, "cross_encoder_0_0")
            stub.suspend()
            call = pool.submit(patient.rerank, "flu", [f"document {n}" for n in range(16)])
            wait_until(lambda: raw.statistics(server.grpc_url, "tokenizer")[0] > tokenized)
            stub.kill()
            assert len(call.result()) == 16
        assert server.running
    restarts = [record.message for record in caplog.records if record.message.endswith("restarting the server")]
    assert [message.partition(";")[0] for message in restarts] == [
        "tritonserver was ended by signal 11 (SIGSEGV) (Signal (11) received.)",
        "the Python process of tokenizer_0_0 has ended",
        "the Python process of cross_encoder_0_0 has ended",
    ]
    assert any(record.message.startswith("ready again") for record in caplog.records)


def test_a_model_process_paused_for_ten_seconds_does_not_end_the_server(tiny_repository):
    with quick_server(tiny_repository) as server, RerankClient(server.grpc_url, max_retries=0, timeout=3) as client:
        stub = stub_of(server, "cross_encoder_0_0")
        stub.suspend()
        resumed_at = time.monotonic() + 12
        while time.monotonic() < resumed_at:  # Triton aborts when it has waited 10 s for a lock of the process
            with pytest.raises(RerankError):
                client.rerank("flu", ["Wash your hands often."])
        with contextlib.suppress(psutil.NoSuchProcess):
            stub.resume()
        wait_until(lambda: client.is_ready(timeout=5))
        assert server.running


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda path: path.unlink(), "cross_encoder/1/model.onnx.data is missing", id="missing"),
        pytest.param(lambda path: truncate(path, 1000), "model.onnx.data has 1000 bytes, the manifest says", id="cut"),
        pytest.param(
            lambda path: alter(path.with_name("model.onnx")), "model.onnx has sha256 .* the manifest says", id="altered"
        ),
    ],
)
def test_damaged_files_are_refused_before_the_start(tiny_repository, tmp_path, damage, reason):
    repository = lay_out(tmp_path / "repository", tiny_repository)
    damage(repository / "cross_encoder/1/model.onnx.data")
    with pytest.raises(RepositoryError, match=reason):
        EmbeddedServer(repository).start()
    command = [EXECUTABLE, "serve", "--repository", repository]
    done = subprocess.run([*command, *FREE_PORTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def truncate(path, size):
    """Replace the link by the first `size` bytes of its target."""
    with path.open("rb") as file:
        content = file.read(size)
    path.unlink()
    path.write_bytes(content)


def alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_one_ensemble_of_two_is_loaded_and_only_grpc_leaves_loopback(colbert_repository, tiny_repository, tmp_path):
    both = shutil.copytree(colbert_repository, tmp_path / "both")
    shutil.copytree(tiny_repository, both, dirs_exist_ok=True, symlinks=True)
    (both / "late_encoder/1/model.onnx").unlink()  # not in the way of the other ensemble
    with pytest.raises(RepositoryError, match=r"'nowhere' is not installed .*; installed: reranker, late_interaction"):
        EmbeddedServer(both, model="nowhere").start()
    command = [EXECUTABLE, "serve", "--repository", both, "--model", "reranker", "--host", "0.0.0.0", *FREE_PORTS]
    cache = {"TRITON_RERANK_CACHE": str(tmp_path / "cache"), "RERANK_OPENVINO_CACHE": str(cache_folder() / "openvino")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | cache
    ) as serve:
        try:
            urls = re.findall(r"127\.0\.0\.1:(\d+)", serve.stdout.readline())
            grpc, http, metrics = map(int, urls)
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/stats") as answer:
                loaded = {model["name"] for model in json.load(answer)["model_stats"]}
            assert loaded == {"cross_encoder", "reranker", "tokenizer"}
            # Triton would load any model now, with any code.
            load = f"http://127.0.0.1:{http}/v2/repository/models/late_scorer/load"
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(load, b"{}", method="POST"))
            (triton,) = [p for p in psutil.Process(serve.pid).children(recursive=True) if p.name() == "tritonserver"]
            listening = {c.laddr.port: c.laddr.ip for c in triton.net_connections("tcp") if c.status == "LISTEN"}
            assert listening[grpc] in ("0.0.0.0", "::")
            assert listening[http] == listening[metrics] == "127.0.0.1"
        finally:
            serve.send_signal(signal.SIGINT)
        assert "gRPC on 0.0.0.0: Triton has no authentication" in serve.stderr.read()
    # Each server has its own log.
    assert [path.name for path in (tmp_path / "cache").glob("*.log")] == [f"server-{grpc}.log"]


def test_two_servers_do_not_share_a_log(tiny_repository, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    log = tmp_path / "server.log"
    with open_log(log) as held:
        held.write(b"the first server\n")
        held.flush()
        with pytest.raises(ServerStartError, match=r"another server writes to the log .*server\.log"):
            EmbeddedServer(tiny_repository, log=log).start()
        assert log.read_text() == "the first server\n"
    with pytest.raises(ServerStartError, match="can't be written"):
        EmbeddedServer(tiny_repository, log=tmp_path).start()
    monkeypatch.setitem(tritonserver.RUNTIMES, "broken", ("openvino", ("--no-such-option",)))
    with pytest.raises(ServerStartError, match="ended while starting"):
        EmbeddedServer(tiny_repository, runtime="broken").start()
    monkeypatch.setattr(tritonserver, "BACKENDS", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        EmbeddedServer(tiny_repository).start()
    assert not list((tmp_path / "temporary").iterdir())
