"""`triton-rerank warm` with the real server: texts are encoded once, and a cache that is too small is told."""

import json
import shutil

import pytest

from support import quick_server, raw
from support.monitors import cache_metrics
from triton_rerank import RerankClient
from triton_rerank.cli.main import main

pytestmark = pytest.mark.integration


@pytest.fixture
def warm(colbert_server, capsys):
    def run(*arguments, url=colbert_server.grpc_url):
        status = main(["warm", "--url", url, "--json", *map(str, arguments)])
        return status, json.loads(capsys.readouterr().out)

    return run


def encoded(server):
    return raw.statistics(server.grpc_url, "late_encoder")


def test_documents_are_encoded_once_and_then_ranked_from_the_cache(warm, colbert_server, tmp_path):
    file = tmp_path / "documents.jsonl"
    rows = [{"title": f"sky {number}", "text": f"the water of mountain {number}"} for number in range(300)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, first = warm(file, "--template", "{title}: {text}")
    assert (status, first["documents"], first["complete"]) == (0, 300, True)
    assert 300 <= first["encoded"] <= 301  # and the query, at first
    assert first["cache"]["texts"] >= 300
    assert first["cache"]["bytes"] == cache_metrics(colbert_server)["bytes"]
    texts = [f"{row['title']}: {row['text']}" for row in rows]
    with RerankClient(colbert_server.grpc_url, "late_interaction") as client:
        client.rerank("warm", texts[:1])
        before = encoded(colbert_server)
        assert len(client.rerank("warm", texts)) == 300
        assert encoded(colbert_server) == before
    assert warm(file, "--template", "{title}: {text}")[1]["encoded"] == 0


def test_a_length_that_the_checkpoint_does_not_take_is_told(colbert_server, tmp_path, capsys):
    (tmp_path / "documents.txt").write_text("sky\n")
    options = ["--url", colbert_server.grpc_url, "--max-length", "99", str(tmp_path / "documents.txt")]
    assert main(["warm", *options]) == 1
    assert "--max-length must be 4 to 48 tokens of a document" in capsys.readouterr().err


def test_a_corpus_is_encoded_as_eval_sends_it(warm, colbert_server, tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"_id": "a", "title": "Train", "text": "to the sky"}\n{"_id": "b", "text": "of blue water"}\n')
    assert warm("--corpus", file)[1]["documents"] == 2
    with RerankClient(colbert_server.grpc_url, "late_interaction") as client:
        before = encoded(colbert_server)
        client.rerank("warm", ["Train to the sky", "of blue water"])
        assert encoded(colbert_server) == before


def test_a_cache_that_is_too_small_is_told_before_all_documents_are_encoded_in_vain(
    warm, colbert_repository, tmp_path, capsys
):
    repository = shutil.copytree(colbert_repository, tmp_path / "repository")
    config = repository / "late_scorer/config.pbtxt"
    config.write_text(config.read_text().replace('"1073741824"', '"200000"'))
    file = tmp_path / "documents.txt"
    file.write_text("".join(f"train {number} of water\n" for number in range(5_000)))
    with quick_server(repository, runtime="onnxruntime") as server:
        status, said = warm(file, url=server.grpc_url)
        assert (status, said["complete"]) == (1, False)
        assert said["cache"]["texts"] < said["documents"] < 5_000
        assert said["cache"]["bytes"] <= 200_000 == said["cache"]["limit_bytes"]
        assert main(["warm", "--url", server.grpc_url, str(file)]) == 1
        assert "of 5,000 documents, and the first are dropped for the last; the cache holds" in capsys.readouterr().out
