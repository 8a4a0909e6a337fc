"""Late interaction's cache over a restart, with vectors as int8."""

import json
import shutil

import numpy as np
import pytest

from support import ROOT, raw
from support.monitors import cache_metrics, wait_until
from support.tiny_late import DIM, DOCUMENTS, QUERIES
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

pytestmark = pytest.mark.integration

GOLDEN = json.loads((ROOT / "tests/support/late_golden.json").read_text())
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]


@pytest.fixture
def repository(colbert_repository, tmp_path):
    repository = shutil.copytree(colbert_repository, tmp_path / "repository")
    config = repository / "late_scorer/config.pbtxt"
    text = config.read_text()
    for name, old, new in (("cache_snapshot", "", "cache.snapshot"), ("vector_type", "fp16", "int8")):
        line = f'"{name}"  value: {{ string_value: "{old}" }}'
        assert text.count(line) == 1
        text = text.replace(line, line.replace(f'"{old}" }}', f'"{new}" }}'))
    # A config of an earlier release lacks parameters, which have defaults.
    kept = [line for line in text.splitlines() if "encoder_requests" not in line and "snapshot_interval" not in line]
    config.write_text("\n".join(kept))
    return repository


def scores(server):
    with RerankClient(server.grpc_url, "late_interaction") as client:
        return client.score(PAIRS, normalize=False)


def test_the_cache_survives_a_restart_and_a_damaged_snapshot_is_not_used(repository, tmp_path):
    snapshot = repository / "late_scorer/1/cache.snapshot"
    with EmbeddedServer(repository, runtime="onnxruntime") as server:
        first = scores(server)
        with RerankClient(server.grpc_url, "late_interaction") as client:
            cache = client.model_info().manifest["cache"]
    assert np.abs(np.array(first) - np.ravel(GOLDEN["scores"])).max() < 0.1  # pylate's, in fp32
    assert snapshot.is_file()

    with EmbeddedServer(repository, runtime="onnxruntime") as server:
        wait_until(lambda: cache_metrics(server)["restored_total"] == cache["texts"])
        encoded = raw.statistics(server.grpc_url, "late_encoder")
        assert scores(server) == first
        assert raw.statistics(server.grpc_url, "late_encoder") == encoded
        found = cache_metrics(server)
        assert found["snapshot_bytes"] == snapshot.stat().st_size
        assert found["bytes"] >= cache["bytes"] > len(DOCUMENTS) * (DIM + 2)

    content = bytearray(snapshot.read_bytes())
    content[-100] ^= 1
    snapshot.write_bytes(content)
    log = tmp_path / "server.log"
    with EmbeddedServer(repository, runtime="onnxruntime", log=log) as server:
        wait_until(lambda: f"{snapshot} is not used: it is damaged; the cache starts empty" in log.read_text())
        assert scores(server) == first
        assert cache_metrics(server)["restored_total"] == 0
        assert cache_metrics(server)["misses_total/document"] >= len(DOCUMENTS)
