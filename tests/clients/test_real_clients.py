"""The clients that callers use, against a gateway in front of the real tritonserver."""

import json
import logging
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from support import ROOT
from support.gateway import GatewayProcess
from support.pages import blocks
from triton_rerank import RerankClient

pytestmark = pytest.mark.integration

ENVIRONMENTS = Path(os.environ["TRITON_RERANK_CLIENTS"])
CALLS = Path(__file__).with_name("calls.py")
GROUPS = {
    "cohere5.5": "cohere5.5",
    "cohere": "cohere",
    "sdks": "sdks-and-langchain",
    "langchain": "sdks-and-langchain",
    "llama-index": "llama-index",
    "haystack": "haystack",
    "litellm": "litellm",
}
"""Group of calls -> environment."""
KEY = "a-key"
QUERY = "how to prevent flu?"
DOCUMENTS = [
    "The central bank raised interest rates by a quarter of a point.",
    "Wearing masks and washing hands frequently can help prevent influenza.",
    "Wash your hands.",
    "The museum is open from nine to five, except on Mondays.",
]


@pytest.fixture(scope="module")
def direct(server):
    """The result of the gRPC client."""
    with RerankClient(server.grpc_url) as client:
        return client.rerank(QUERY, DOCUMENTS)


@pytest.fixture(scope="module")
def gateway(server):
    with GatewayProcess(server.grpc_url, env={"TRITON_RERANK_GATEWAY_API_KEYS": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def made(gateway, direct):
    """Group -> its calls, made once."""
    given = {"query": QUERY, "documents": DOCUMENTS, "tokens": direct.usage.num_tokens}

    @cache
    def make(group):
        python = ENVIRONMENTS / GROUPS[group] / "bin" / "python"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [python, CALLS, group, gateway.url, KEY],
            input=json.dumps(given),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert lines, done.stderr
        return {line["name"]: line for line in lines}

    return make


@pytest.mark.parametrize("group", GROUPS)
def test_every_client_gets_the_order_and_scores_of_the_grpc_client(group, made, direct):
    best = direct.results[:2]
    wanted = {
        "scores": [[result.index, result.relevance_score] for result in best],
        "logits": [[result.index, ["logit", result.logit]] for result in best],
    }
    failed = {}
    for name, line in made(group).items():
        found = line.get("found")
        good = found == "refused" or found in wanted.values()
        logging.info("%s: %s: %s", group, name, "as the gRPC client" if good and found != "refused" else found)
        if not good:
            failed[name] = line
    assert not failed


def test_the_page_of_the_interface_in_a_browser(gateway):
    """Chromium runs the page's script, which fills its tables from openapi.json."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    page = subprocess.run([*command, f"{gateway.url}/docs"], capture_output=True, text=True, check=True).stdout
    for text in ("<b>POST</b>", "/v1/models/{name}", "max_tokens_per_doc", "Retry-After", "Authorization: Bearer KEY"):
        assert text in page


PAGE = ROOT / "docs" / "gateway-callers.md"
ENVIRONMENT_OF = {"LangChain": "sdks-and-langchain", "LlamaIndex": "llama-index", "Haystack": "haystack"}


@pytest.mark.parametrize("section", ENVIRONMENT_OF)
def test_the_settings_of_the_page_are_accepted(section, gateway):
    """Each example makes its component; some ask the gateway for its models then."""
    code = "".join(block.text for block in blocks(PAGE) if block.section == section and block.language == "python")
    assert code.count("http://gateway:8080") >= 3
    code = code.replace("http://gateway:8080", gateway.url).replace("KEY", KEY)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = ENVIRONMENTS / ENVIRONMENT_OF[section] / "bin" / "python"
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_python_example_of_the_page_is_in_a_tested_section():
    assert {block.section for block in blocks(PAGE) if block.language == "python"} == set(ENVIRONMENT_OF)
