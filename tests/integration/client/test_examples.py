"""examples/: each program runs against the real server, and its README names it."""

import json
import re
import runpy
import socket

import grpc
import pytest
from fastapi.testclient import TestClient

from support import ROOT
from support.examples import assert_same_output, run_python
from support.fake_triton import FakeTriton
from triton_rerank import InferenceError, RerankClient

pytestmark = pytest.mark.integration

FOLDER = ROOT / "examples"
PROGRAMS = sorted(path for path in FOLDER.iterdir() if path.suffix in {".py", ".ipynb"})
NOTEBOOK = FOLDER / "evaluation.ipynb"


@pytest.fixture(autouse=True)
def in_the_checkout(server, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TRITON_RERANK_URL", server.grpc_url)


def program(name):
    return runpy.run_path(str(FOLDER / name), run_name="example")


def test_the_readme_names_every_program():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[(\S+)\]\(\1\)", text, re.MULTILINE) != []
    assert sorted(re.findall(r"^\| \[(\S+)\]\(\1\)", text, re.MULTILINE)) == [path.name for path in PROGRAMS]


def test_search_api():
    with TestClient(program("search_api.py")["app"]) as web:
        found = web.get("/search", params={"query": "How do I adjust the straps of my backpack?", "top_n": 2}).json()
        assert found["reranked"]
        assert len(found["hits"]) == 2
        assert found["hits"][0]["article"]["_id"] == "d11"
        assert found["hits"][0]["score"] > found["hits"][1]["score"]
        assert web.get("/search", params={"query": "xyzzy"}).json() == {"reranked": True, "hits": []}
        assert web.get("/search", params={"query": " "}).status_code == 422
        assert web.get("/search", params={"query": "boots", "top_n": 0}).status_code == 422


def test_search_api_without_a_reranker(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TRITON_RERANK_URL", f"127.0.0.1:{probe.getsockname()[1]}")
        with TestClient(program("search_api.py")["app"]) as web:
            found = web.get("/search", params={"query": "straps of my backpack", "top_n": 1}).json()
    assert not found["reranked"]
    assert found["hits"][0] == {"article": found["hits"][0]["article"], "score": None}
    assert found["hits"][0]["article"]["_id"] == "d11"


def test_langgraph_rag():
    example = program("langgraph_rag.py")
    try:
        good = example["rag"].invoke({"question": "How many hours does the headlamp last?"})["answer"]
        bad = example["rag"].invoke({"question": "Who may wear a tie at the opera?"})["answer"]
    finally:
        example["reranker"].close()
    assert good.startswith("Answer from this text:\nThree AAA cells last for sixty hours")
    assert bad == "No article answers this: Who may wear a tie at the opera?"


def test_llama_index_engine(server):
    example = program("llama_index_engine.py")
    reranker = example["TritonRerank"](url=server.grpc_url, top_n=2)
    try:
        response = example["make_engine"](reranker).query("Why is my stove weak in the cold?")
    finally:
        reranker.close()
    first, second = response.source_nodes
    assert first.node_id == "d09"
    assert first.score > second.score
    assert first.text in str(response)


SEARCHES = [
    {"query": "capital of Japan", "documents": ["Soup needs salt.", "Tokyo is the capital of Japan."]},
    {"query": " ", "documents": ["Soup needs salt."]},
    {"query": "столица России", "documents": ["Москва является столицей России.", "Soup needs salt."]},
]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_bulk_goes_on_after_an_interruption(server, tmp_path, capsys):
    main = program("bulk.py")["main"]
    source, target = write_lines(tmp_path / "searches.jsonl", SEARCHES), tmp_path / "ranked.jsonl"
    main(source, target)
    whole = target.read_bytes()
    first, broken, last = map(json.loads, whole.decode().splitlines())
    with RerankClient(server.grpc_url) as client:
        response = client.rerank(SEARCHES[0]["query"], SEARCHES[0]["documents"])
    assert first["order"] == [result.index for result in response] == [1, 0]
    assert first["scores"] == pytest.approx([result.relevance_score for result in response], abs=0.01)
    assert "query" in broken["error"]
    assert last["order"] == [0, 1]

    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    target.write_bytes(whole[: ends[1] + 10])  # killed while it wrote the third line
    main(source, target)
    assert target.read_bytes()[: ends[1] + 1] == whole[: ends[1] + 1]
    assert [json.loads(line)["query"] for line in target.read_text().splitlines()] == [s["query"] for s in SEARCHES]
    main(source, target)  # nothing is left to do
    assert capsys.readouterr().err == "3 searches\n3 searches\n"


def test_bulk_stops_when_the_server_fails(server, tmp_path, monkeypatch):
    main = program("bulk.py")["main"]
    source, target = write_lines(tmp_path / "searches.jsonl", SEARCHES), tmp_path / "ranked.jsonl"

    def fail(request, context):
        context.abort(grpc.StatusCode.INTERNAL, "no")

    with FakeTriton() as failing:
        failing.faults.extend([fail] * len(SEARCHES))
        monkeypatch.setenv("TRITON_RERANK_URL", failing.url)
        with pytest.raises(InferenceError):
            main(source, target)
    monkeypatch.setenv("TRITON_RERANK_URL", server.grpc_url)
    main(source, target)
    assert [json.loads(line)["query"] for line in target.read_text().splitlines()] == [s["query"] for s in SEARCHES]


def test_bulk_leaves_no_file_without_searches(tmp_path):
    with pytest.raises(FileNotFoundError, match="searches"):
        program("bulk.py")["main"](tmp_path / "searches.jsonl", tmp_path / "ranked.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"query": "soup"}'])
def test_bulk_names_a_line_that_it_cannot_read(line, tmp_path):
    source = write_lines(tmp_path / "searches.jsonl", SEARCHES[:1])
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(SystemExit, match=r"searches\.jsonl:2: not \{"):
        program("bulk.py")["main"](source, tmp_path / "ranked.jsonl")


def test_evaluation_notebook(monkeypatch):
    monkeypatch.chdir(FOLDER)  # as Jupyter does
    namespace = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in cells) == 3
    for cell in cells:
        printed = run_python("".join(cell["source"]), namespace, NOTEBOOK)
        assert_same_output(printed, "".join(text for output in cell["outputs"] for text in output["text"]))
