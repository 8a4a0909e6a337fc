"""Bulk jobs on a real Ray cluster and real servers, and the examples of docs/bulk.md."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support import ROOT
from support.monitors import triton_process, wait_until
from support.pages import blocks
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGE = ROOT / "docs" / "bulk.md"
BIN = Path(sys.executable).parent
WORDS = ["soup", "train", "bank", "river", "salt", "money", "hand", "wash", "flu", "mask", "tokyo", "rate"]


@pytest.fixture(scope="module")
def ray_cluster():
    """The environment of commands that use a Ray head on this machine; it asks for a token, as Ray does by default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: paths of Ray's sockets have a limit
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore", **token}
    options = ["--num-cpus=4", "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    command = [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", *options]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as head,
    ):
        try:
            wait_until(lambda: head.poll() is not None or b"Ray runtime started" in (folder / "log").read_bytes())
            assert head.poll() is None, (folder / "log").read_text()
            yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            for process in (*psutil.Process(head.pid).children(recursive=True), head):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()
            shutil.rmtree(folder, ignore_errors=True)


def searches(count):
    chance = np.random.default_rng(7)

    def text():
        return " ".join(chance.choice(WORDS, 8))

    return [
        {
            "query": f"{text()} {row}",
            "candidates": [text() for _ in range(row % 4 + 1)],
            "doc_ids": list("dcba"[: row % 4 + 1]),
        }
        for row in range(count)
    ]


def test_one_of_two_servers_is_killed_and_restarted_in_the_middle_of_2000_queries(tiny_exports, ray_cluster, tmp_path):
    rows = searches(2000)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=600)
    repository, out = tiny_exports("bert", "fp32").repository, tmp_path / "out"
    with EmbeddedServer(repository) as first, EmbeddedServer(repository) as second:
        command = [BIN / "triton-rerank", "bulk", tmp_path / "in.parquet", out, "--json", "--ids-column", "doc_ids"]
        command += ["--url", first.grpc_url, "--url", second.grpc_url, "--block-rows", "50"]
        command += ["--ray-address", ray_cluster["RAY_ADDRESS"], "--workers", "2"]
        with subprocess.Popen(
            command, env=ray_cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as job:
            wait_until(lambda: len(list(out.glob("part-*"))) >= 10, 120)
            frozen = triton_process(second, "--grpc-port")
            frozen.suspend()  # so that the job cannot end before the first server is back
            triton_process(first, "--grpc-port").kill()  # its supervisor restarts it
            try:
                with RerankClient(first.grpc_url) as client:
                    wait_until(lambda: client.is_ready(timeout=5))
                assert 10 <= len(list(out.glob("part-*"))) < 40
            finally:
                frozen.resume()
            stdout, stderr = job.communicate(timeout=250)
        assert job.returncode == 0, stderr
        sample = range(0, 2000, 97)
        with RerankClient(second.grpc_url) as client:
            logits = {
                row: client.score([(rows[row]["query"], text) for text in rows[row]["candidates"]]) for row in sample
            }
    said = json.loads(stdout)
    assert (said["rows"], said["failures"], said["pairs"]) == (2000, 0, sum(len(row["candidates"]) for row in rows))
    table = pq.read_table(out)
    assert table.column("row").to_pylist() == list(range(2000))
    assert [sorted(ids) for ids in table.column("ranked_ids").to_pylist()] == [sorted(row["doc_ids"]) for row in rows]
    for row, scores in logits.items():
        found = dict(zip(table.column("ranked_ids")[row].as_py(), table.column("scores")[row].as_py(), strict=True))
        assert [found[name] for name in rows[row]["doc_ids"]] == pytest.approx(scores, abs=2e-2)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_examples_of_the_page(server, ray_cluster, tmp_path):
    of_page = [block for block in blocks(PAGE) if block.section != "In Spark"]
    ran = 0
    for block, following in zip(of_page, [*of_page[1:], None], strict=True):
        if block.language == "text":
            continue
        program = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}[block.language]
        code = block.text.replace("localhost:8001", server.grpc_url)
        done = subprocess.run(
            [*program, code], cwd=tmp_path, env=ray_cluster, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if following is not None and following.language == "text":
            assert done.stdout == following.text
        ran += 1
    assert ran == 5
    assert pq.read_table(tmp_path / "ranked-by-ray.parquet").num_rows == 2


def test_the_function_for_spark(server):
    """Spark itself is not installed; it calls the function as this test does."""
    code, in_spark = [block.text for block in blocks(PAGE) if block.section == "In Spark"]
    namespace = {}
    exec(code.replace("localhost:8001", server.grpc_url), namespace)
    frame = pd.DataFrame(
        {
            "query_id": ["q1", "q2"],
            "query": ["What is the capital of Japan?", None],
            "candidates": [[{"id": "a", "text": "Money."}, {"id": "b", "text": "Tokyo is the capital of Japan."}], []],
        }
    )
    (found,) = namespace["rerank"](iter([frame]))
    assert list(found.columns) == re.findall(r"(\w+) (?:string|array)", in_spark)
    assert found["ranked_ids"].iloc[0] == ["b", "a"]
    assert found["error"].iloc[1] == "column query: is null"
