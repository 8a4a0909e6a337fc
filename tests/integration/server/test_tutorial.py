"""docs/tutorial.md: every example runs, in its order, and prints its output."""

import re

import pytest

from support import ROOT
from support.examples import assert_same_output, replaced, run_bash, run_python, sections
from support.gateway import GatewayProcess
from support.pages import blocks

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGE = ROOT / "docs" / "tutorial.md"
SECTIONS = sections([PAGE])
KEY = "a-key"
DONE = re.compile(
    r"^(python3 -m venv|build/torch\.sh|pip install"  # the environment of the tests
    r"|triton-rerank-build serve|triton-rerank gateway|openssl"  # the fixtures
    r"|triton-rerank-build export demo-late)\b.*$",  # test_late_demo.py
    re.MULTILINE,
)
"""Commands of the page that something else has run already."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, demo_repository, fp16_artefacts, tiny_exports):
    """A checkout in which the demo reranker is installed at fp32 and fp16, and a tiny one in its place at int8."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "keys").write_text(KEY)
    installed = {"model_repository": demo_repository, "fp16": fp16_artefacts}
    for name, repository in (installed | {"int8": tiny_exports("xlm-roberta", "int8").repository}).items():
        (folder / name).symlink_to(repository)
    return folder


@pytest.fixture(scope="module")
def gateway(server):
    with GatewayProcess(server.grpc_url, env={"TRITON_RERANK_GATEWAY_API_KEYS": KEY}) as running:
        yield running


def names_here(code, request):
    """What the page names -> what stands for it here, started when it is needed."""
    names = {}
    if "localhost:8080" in code:
        names["localhost:8080"] = request.getfixturevalue("gateway").url.removeprefix("http://")
    if re.search(r"finetune demo|--precision int8", code):  # minutes with the demo reranker
        names["demo"] = str(request.getfixturevalue("tiny_exports")("xlm-roberta", "int8").checkpoint)
    return names


@pytest.mark.parametrize("heading", [heading for _, heading in SECTIONS])
def test_examples_run_and_print_their_output(heading, checkout, request, monkeypatch):
    examples = SECTIONS[PAGE, heading]
    late = any("late_interaction" in example.code for example in examples)
    url = request.getfixturevalue("both_server" if late else "server").grpc_url
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("TRITON_RERANK_URL", url)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # models this small gain nothing from a second thread, and wait for it
    namespace = {"__name__": "__main__"}
    for example in examples:
        code = replaced(DONE.sub("true", example.code), {"localhost:8001": url, **names_here(example.code, request)})
        printed = (
            run_python(code, namespace, example.page, example.line)
            if example.language == "python"
            else run_bash(code, checkout)
        )
        if example.output is not None:
            assert_same_output(printed, example.output)


def test_every_block_is_an_example_or_an_output():
    examples = [example for found in SECTIONS.values() for example in found]
    assert {example.language for example in examples} == {"python", "bash"}
    outputs = [block for block in blocks(PAGE) if block.language == "text"]
    assert len(outputs) == sum(example.output is not None for example in examples)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("a 0.93\n", "a 0.92\n", True),
        ("a 0.93\n", "a 0.80\n", False),
        ("b 0.93\n", "a 0.93\n", False),
        ("1 a\n2 b\n", "2 b\n1 a\n", False),
        ("a 10\n", "a 11\n", False),
        ("x\ny\na 0.5 z\n", "...\na 0.5 ...\n", True),
        ("a\nmore\n", "a\n", False),
        ("a\n", "a\n...\nb\n", False),
    ],
)
def test_when_an_output_is_the_same(printed, expected, same):
    if same:
        assert_same_output(printed, expected)
    else:
        with pytest.raises(AssertionError):
            assert_same_output(printed, expected)
