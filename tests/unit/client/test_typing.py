"""Type checkers see the options of a call, and a result's document as the type that the caller passed."""

import os
import subprocess
import sys

from support import ROOT

HEADER = """
from collections.abc import Mapping
from triton_rerank import AsyncRerankClient, CallOptions, Cascade, Document, RerankClient, RerankError, RerankResponse

client = RerankClient()
products: list[dict[str, str]] = []
options: CallOptions = {"top_n": 5, "long_documents": "chunk"}
"""
GOOD = """
response = client.rerank("q", products, text_from="{title}")
same: RerankResponse[dict[str, str]] = client.rerank("q", products, **options)
sku: str = response[0].document["sku"]
first_two: RerankResponse[dict[str, str]] = response[:2]
text: str = client.rerank("q", ["a", "b"])[0].document.upper()
passage: str | None = client.rerank("q", [Document("a")])[0].document.id
stages: list[str] = [stage.model for stage in client.rerank("q", ["a"], cascade=0.1).stages]
client.rerank("q", ["a"], cascade=Cascade(20, first="colbert", fallback=True))
many: list[RerankResponse[str]] = client.rerank_many([("q", ["a"])], top_n=1, concurrency=2)

def show(anything: RerankResponse) -> int:
    return len(anything)

show(response)
kept: list[RerankResponse[str] | RerankError] = client.rerank_many([("q", ["a"])], return_exceptions=True)

async def awaited(twin: AsyncRerankClient) -> str:
    return (await twin.rerank("q", products, timeout=1))[0].document["sku"]
"""
BAD = [
    ('client.rerank("q", products, topn=5)', 'Unexpected keyword argument "topn"'),
    ('client.rerank("q", products, top_n="5")', 'Argument "top_n" to "rerank"'),
    ('client.rerank("q", products, long_documents="split")', 'Argument "long_documents" to "rerank"'),
    ('client.rerank("q", products, cascade="20")', 'Argument "cascade" to "rerank"'),
    ('client.rerank("q", [3])', '"DocumentT"'),
    ('client.rerank("q", ["a"])[0].document["sku"]', "Invalid index type"),
]


def test_mypy_reads_options_and_documents(tmp_path):
    snippet = tmp_path / "snippet.py"
    lines = (HEADER + GOOD).count("\n")
    snippet.write_text(HEADER + GOOD + "\n".join(line for line, _ in BAD) + "\n")
    environment = {**os.environ, "MYPYPATH": str(ROOT / "client")}
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    command += ["--config-file", str(ROOT / "pyproject.toml"), str(snippet)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if line.startswith("snippet.py") and " error: " in line]
    assert len(errors) == len(BAD), done.stdout + done.stderr
    for number, ((_, message), error) in enumerate(zip(BAD, errors, strict=True), start=lines + 1):
        assert error.startswith(f"snippet.py:{number}:")
        assert message in error
