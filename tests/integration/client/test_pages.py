"""client/README.md: every example runs, prints what it says, and the tables tell the truth."""

import logging
import os
import re
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import grpc
import pytest
import trustme
from fastapi.testclient import TestClient

import triton_rerank
from support import ROOT
from support.fake_triton import FakeTriton
from triton_rerank import RerankClient, ServerUnavailableError
from triton_rerank.errors import error_from_status

pytestmark = pytest.mark.integration

README = ROOT / "client" / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    output: str | None
    line: int


def sections():
    """Heading -> its examples."""
    found = {}
    for section in re.finditer(r"^## (.+)\n((?:(?!^## ).*\n)*)", TEXT, re.MULTILINE):
        examples = [
            Example(block[1], block[2], block[3], TEXT.count("\n", 0, section.start(2) + block.start(2)))
            for block in BLOCK.finditer(section[2])
        ]
        if examples:
            found[section[1]] = examples
    return found


def run_python(code, line, namespace):
    """Run an example, whose lines in a traceback are those of the README."""
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * line + code, README, "exec"), namespace)
    return printed.getvalue()


def run_bash(code):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def secure_server(tmp_path, monkeypatch):
    """A server that asks for a certificate, and the files that the example names."""
    authority = trustme.CA()
    own, client = authority.issue_cert("localhost"), authority.issue_cert("client@example.org")
    monkeypatch.chdir(tmp_path)
    authority.cert_pem.write_to_path("roots.pem")
    client.private_key_pem.write_to_path("client-key.pem")
    client.cert_chain_pems[0].write_to_path("client.pem")
    credentials = grpc.ssl_server_credentials(
        [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())], authority.cert_pem.bytes(), True
    )
    with FakeTriton(credentials=credentials) as server:
        yield server


@pytest.fixture
def closed_port():
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def addresses(server, secure_server, closed_port):
    """Address in the README -> address here. One of three servers is down."""
    return {
        "localhost:8001": server.grpc_url,
        "gpu-1:8001": server.grpc_url,
        "gpu-2:8001": closed_port,
        "gpu-3:8001": server.grpc_url,
        "rerank.internal:8001": server.grpc_url.replace("127.0.0.1", "localhost"),
        "rerank.example.com:8001": f"localhost:{secure_server.port}",
    }


@pytest.fixture(autouse=True)
def log_level():
    """One example sets it."""
    logger = logging.getLogger("triton_rerank")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("heading", sections())
def test_examples_run_and_print_what_they_say(heading, addresses):
    namespace = {"__name__": "__main__"}
    for example in sections()[heading]:
        code = re.sub("|".join(map(re.escape, addresses)), lambda match: addresses[match[0]], example.code)
        printed = run_python(code, example.line, namespace) if example.language == "python" else run_bash(code)
        if example.output is not None:
            assert printed == example.output
    if "app" in namespace:
        check_service(namespace["app"])


def check_service(app):
    with TestClient(app) as web:
        answer = web.post("/rerank", json={"query": "soup", "documents": ["The train is late.", "Soup needs salt."]})
        assert [result["index"] for result in answer.json()] == [1, 0]
        assert web.post("/rerank", json={"query": " ", "documents": ["Soup needs salt."]}).status_code == 422


def test_every_block_is_an_example_or_an_output():
    blocks = re.findall(r"^```(\w+)$", TEXT, re.MULTILINE)
    examples = [example for section in sections().values() for example in section]
    assert len(blocks) == len(examples) + sum(example.output is not None for example in examples)


def test_links_within_the_page_lead_somewhere():
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) == headings


def test_extras_exist():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"triton-rerank\[([\w-]+)\]", TEXT):
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), extra


def rows_of_errors():
    table = TEXT.partition("| gRPC status |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("row", rows_of_errors(), ids=lambda row: row[1])
def test_table_of_errors(row):
    """Each status raises what the table says, after as many requests as the table says."""
    cause, name, bases, retried = row
    kind = getattr(triton_rerank, name.strip("`"))
    details = "Exceeds maximum queue size" if "queue full" in cause else "no"
    for status in re.findall(r"`([A-Z_]+)`", cause):
        assert type(error_from_status(status, details, "server")) is kind, status
    for base in re.findall(r"`(\w+)`", bases):
        assert base in [parent.__name__ for parent in kind.__mro__[1:]]
    assert issubclass(kind, ServerUnavailableError) is retried.startswith("yes")


@pytest.mark.parametrize(
    ("status", "num_sent"),
    [(grpc.StatusCode.UNAVAILABLE, 3), (grpc.StatusCode.INTERNAL, 1), (grpc.StatusCode.INVALID_ARGUMENT, 1)],
)
def test_retried_means_sent_again_max_retries_times(status, num_sent):
    def refuse(request, context):
        context.abort(status, "no")

    with FakeTriton() as server, RerankClient(server.url, max_retries=2) as client:
        server.faults.extend([refuse] * 5)
        with pytest.raises(type(error_from_status(status.name, "no", "server"))):
            client.rerank("soup", ["1"])
        assert len(server.requests) == num_sent
