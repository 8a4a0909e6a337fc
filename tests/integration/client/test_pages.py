"""client/README.md and docs/client: every example runs and prints its output, and the tables are correct."""

import logging
import re
import socket

import grpc
import pytest
import trustme
from fastapi.testclient import TestClient

import triton_rerank
from support import ROOT
from support.examples import replaced, run_bash, run_python, sections
from support.fake_triton import FakeTriton
from support.pages import blocks, links
from triton_rerank import RerankClient, ServerUnavailableError
from triton_rerank.errors import error_from_status

pytestmark = pytest.mark.integration

README = ROOT / "client" / "README.md"
FOLDER = ROOT / "docs" / "client"
ERRORS = FOLDER / "servers-and-retries.md"
PAGES = [README, *sorted(FOLDER.glob("*.md"))]
SECTIONS = sections(PAGES)


@pytest.fixture
def secure_server(tmp_path, monkeypatch):
    """A server that requires a client certificate, and the files that the example names."""
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
def addresses(server, both_server, secure_server, closed_port):
    """Address on the pages -> address here. One of three servers is down."""
    return {
        "localhost:8001": server.grpc_url,
        "gpu-late:8001": both_server.grpc_url,
        "gpu-1:8001": server.grpc_url,
        "gpu-2:8001": closed_port,
        "gpu-3:8001": server.grpc_url,
        "rerank.internal:8001": server.grpc_url.replace("127.0.0.1", "localhost"),
        "rerank.example.com:8001": f"localhost:{secure_server.port}",
    }


@pytest.fixture(autouse=True)
def log_level():
    """One example changes it."""
    logger = logging.getLogger("triton_rerank")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: f"{section[0].stem}: {section[1]}")
def test_examples_run_and_print_their_output(section, addresses):
    namespace = {"__name__": "__main__"}
    for example in SECTIONS[section]:
        code = replaced(example.code, addresses)
        printed = (
            run_python(code, namespace, example.page, example.line) if example.language == "python" else run_bash(code)
        )
        if example.output is not None:
            assert printed == example.output
    if "app" in namespace:
        check_service(namespace["app"])


def check_service(app):
    with TestClient(app) as web:
        answer = web.post("/rerank", json={"query": "soup", "documents": ["The train is late.", "Soup needs salt."]})
        assert [result["index"] for result in answer.json()] == [1, 0]
        assert web.post("/rerank", json={"query": " ", "documents": ["Soup needs salt."]}).status_code == 422


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_an_example_or_an_output(page):
    examples = [example for (of, _), found in SECTIONS.items() if of == page for example in found]
    assert {example.language for example in examples} == ({"bash"} if page.stem == "command-line" else {"python"})
    outputs = [block for block in blocks(page) if block.language == "text"]
    assert len(outputs) == sum(example.output is not None for example in examples)


def test_the_readme_links_to_every_page():
    linked = {(README.parent / path).resolve() for path, _ in links(README)}
    assert {path for path in linked if path.parent == FOLDER} == set(PAGES[1:])


def test_extras_exist():
    projects = [ROOT / "pyproject.toml", ROOT / "client/pyproject.toml", ROOT / "build/pyproject.toml"]
    declared = "".join(project.read_text(encoding="utf-8") for project in projects if project.exists())
    pages = [README, ROOT / "docs/tutorial.md", ROOT / "examples/README.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    extras = re.findall(r"pip install \"\S+\[([\w,-]+)\]\"", text)
    assert len(extras) >= 5
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), extra


def rows_of_errors():
    table = ERRORS.read_text(encoding="utf-8").partition("| gRPC status |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("row", rows_of_errors(), ids=lambda row: row[1])
def test_table_of_errors(row):
    """Each status raises the exception of its row, with its bases and its retries."""
    cause, name, bases, retried = row
    kind = getattr(triton_rerank, name.strip("`"))
    details = "Exceeds maximum queue size" if "queue full" in cause else "no"
    if "model process is dead" in cause:
        details = "Stub process 'tokenizer_0_0' is not healthy."
    for status in re.findall(r"`([A-Z_]+)`", cause):
        assert type(error_from_status(status, details, "server")) is kind, status
    for base in re.findall(r"`(\w+)`", bases):
        assert base in [parent.__name__ for parent in kind.__mro__[1:]]
    assert issubclass(kind, ServerUnavailableError) is retried.startswith("yes")


@pytest.mark.parametrize(
    ("status", "details", "num_sent"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", 3),
        (grpc.StatusCode.INTERNAL, "no", 1),
        (grpc.StatusCode.INVALID_ARGUMENT, "no", 1),
    ],
)
def test_overload_is_retried_max_retries_times(status, details, num_sent):
    def refuse(request, context):
        context.abort(status, details)

    with FakeTriton() as server, RerankClient(server.url, max_retries=2) as client:
        server.faults.extend([refuse] * 5)
        with pytest.raises(type(error_from_status(status.name, details, "server"))):
            client.rerank("soup", ["1"])
        assert len(server.requests) == num_sent
