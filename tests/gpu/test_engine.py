"""`engine` with the real trtexec: every family, every profile, three profiles, and the demo reranker's own weights."""

import time

import pytest

from triton_rerank_build import verify
from triton_rerank_build.tensorrt.install import build_engine

pytestmark = pytest.mark.usefixtures("trtexec")


def three_profiles(repository):
    config = repository / "cross_encoder/configs/tensorrt.pbtxt"
    config.write_text(config.read_text().replace('profile: [ "0" ]', 'profile: [ "0", "1", "2" ]'))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_RERANK_CACHE", str(tmp_path / "cache"))


def test_a_plan_of_every_family_computes_what_its_graph_computes(tiny, tmp_path, record_property):
    three_profiles(tiny)
    manifest = build_engine(tiny, timing_cache=tmp_path / "timings")
    assert verify(tiny) == manifest
    assert len(manifest.engine.profiles) == 3
    record_property("tensorrt", manifest.engine.tensorrt)
    assert manifest.engine.worst_difference <= 2e-2
    record_property("worst_difference", manifest.engine.worst_difference)


def test_the_demo_reranker_and_the_timing_cache(demo, gpu, tmp_path, record_property):
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        manifest = build_engine(demo, timing_cache=tmp_path / "timings", force=True)
        seconds.append(time.perf_counter() - started)
    record_property("seconds_to_build", seconds)
    record_property("worst_difference", manifest.engine.worst_difference)
    record_property("bytes", manifest.artefacts["cross_encoder/1/model.plan"].bytes)
    assert (tmp_path / "timings").stat().st_size > 0
    assert manifest.engine.gpu == gpu
    assert verify(demo) == manifest
