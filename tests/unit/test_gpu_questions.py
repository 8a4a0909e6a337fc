"""The parts of tests/gpu's questions that need no GPU: verdicts, bars, the report, the queue, carried packages."""

import io
import json
import tarfile
import time
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gpu import questions
from gpu.networks import NETWORKS, check_batches, workloads
from gpu.probe import CUDA
from gpu.report import Answer, bars, write_report
from gpu.speed import percentiles, poisson, queue
from gpu.unpack import unpack


@pytest.fixture
def run(tmp_path):
    return questions.Run("v2-m3", CUDA, tmp_path, time.monotonic() + 60, graphs=tmp_path)


def save_optimized(run, operators, copied=()):
    nodes = [helper.make_node(name, ["x"], [f"{name}{index}"]) for name, n in operators.items() for index in range(n)]
    nodes += [helper.make_node("MemcpyToHost", [f"from{index}"], [f"to{index}"]) for index in range(len(copied))]
    types = [helper.make_tensor_value_info(f"from{index}", kind, None) for index, kind in enumerate(copied) if kind]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], value_info=types)), run.folder / "optimized.onnx")


@pytest.mark.parametrize(
    ("kernels", "verdict"),
    [(["FLASH_ATTENTION"] * 24, "yes"), (["FLASH_ATTENTION", "MATH"], "no"), ([], "no")],
)
def test_flash_attention_means_every_node(run, monkeypatch, kernels, verdict):
    printed = "\n".join(f"Operator=PackedMultiHeadAttention SdpaKernel={kernel}" for kernel in kernels)
    monkeypatch.setattr(run, "probe", lambda job, **settings: ({"logits": {}}, printed))
    assert questions.flash_attention(run).verdict == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [([1.01, -1.0], "yes"), ([1.03, -1.0], "no"), ([float("nan"), -1.0], "no"), ([1.0, 1.0], "no")],
)
def test_logits_are_held_to_the_reference_file(run, monkeypatch, found, verdict):
    run.found = {"ragged": found}
    monkeypatch.setattr(run, "probe", lambda job, **settings: ({"logits": {"ragged": [1.0, -1.0]}}, ""))
    assert questions.logits(run).verdict == verdict


def test_fusions_are_counted_by_layer(run):
    save_optimized(run, {"BiasGelu": 24, "SkipLayerNormalization": 48})
    assert questions.fusions(run).verdict == "yes"
    save_optimized(run, {"BiasGelu": 24, "SkipLayerNormalization": 47})
    assert questions.fusions(run).verdict == "no"


@pytest.mark.parametrize(
    ("copied", "verdict"),
    [
        ((), "yes"),
        ((TensorProto.INT32, TensorProto.INT64), "yes"),
        ((TensorProto.INT32, TensorProto.FLOAT16), "no"),
        ((TensorProto.INT32, None), "read the list: types unknown"),
    ],
)
def test_copies_of_floats_are_told_from_those_of_integers(run, copied, verdict):
    save_optimized(run, {}, copied)
    answer = questions.copies(run)
    assert (answer.verdict, answer.figures["Memcpy nodes"]) == (verdict, len(copied))


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "yes"), (1.3, "no")])
def test_peaks_are_held_to_the_arithmetic(run, monkeypatch, share, verdict):
    # 30 bytes per token and unit of width: build/README.md.
    def probe(job, rows, tokens, **settings):
        return {"batch_bytes": share * 30 * 1024 * rows * tokens, "all_bytes": 0, "first_run_s": 1.0}, ""

    monkeypatch.setattr(run, "probe", probe)
    answer = questions.peaks(run)
    assert answer.verdict == verdict
    assert answer.figures["48 x 8192: taken, of computed"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("worst", "beyond", "verdict"), [(0.01, 9.0, "yes"), (0.03, 0.0, "no"), (float("inf"), 0, "no")]
)
def test_the_largest_batch_is_held_to_its_rows_alone(run, monkeypatch, worst, beyond, verdict):
    asked = []

    def probe(job, **settings):
        if job == "largest":
            asked.append((settings["rows"], settings["tokens"]))
            return {"worst": worst if len(asked) == 1 else beyond}, ""
        return {"noise": {"worst": 1e-3}, "instances": {"rows_per_s": {"1": 3000.0, "2": 3600.0}}}[job], ""

    monkeypatch.setattr(run, "probe", probe)
    assert questions.edges(run).verdict == verdict
    # 2^31 elements of the widest tensor, 4,096 a token: 128 rows of 4,095 tokens are just below.
    assert asked == [(128, 4095), (144, 4095)]
    assert 128 * 4095 * 4096 < 2**31 < 144 * 4095 * 4096


def test_bars_depend_on_the_card():
    def met(gpu, documents_s):
        return [bar.met for bar in bars(gpu, 0.005, documents_s, 2 * documents_s, {1: 0.13})]

    assert met("NVIDIA H100 80GB HBM3", 0.027) == [True, None, True, True]
    assert met("NVIDIA A100-SXM4-80GB", 0.07) == [False, None, True, True]
    assert met("NVIDIA L4", 0.2) == [True, True, True, True]
    assert met("NVIDIA L40S", 0.2)[:2] == [None, None]  # not an L4
    assert met(None, 0.027) == [None] * 4


def test_the_report_shows_every_question_in_order(tmp_path):
    answers = [Answer(1, "yes"), Answer(3, "failed", {"a | b": 1.23456789}, "RuntimeError: out of time")]
    write_report(tmp_path / "report", {"gpu": "NVIDIA H100"}, answers, bars("NVIDIA H100", 0.005, 0.03, None, {}))
    document = json.loads((tmp_path / "report.json").read_text())
    verdicts = [answer["verdict"] for answer in document["answers"]]
    assert verdicts == ["yes", "not reached", "failed", *["not reached"] * 4]
    text = (tmp_path / "report.md").read_text()
    assert "| a \\| b | 1.235 |" in text
    assert "| 100 documents, ms | 27 | 30 | **no** |" in text


def test_calls_that_wait_are_run_together():
    now, batches = [0.0], []

    def advance(seconds):
        now[0] += seconds

    def run_batch(calls):
        batches.append(calls)
        advance(1.0)

    # The first runs from 0.5 to 1.5, the two that arrived meanwhile until 2.5, then two of the three that arrived.
    arrivals = [0.5, 0.6, 1.0, 1.6, 1.7, 1.8]
    latencies = queue(arrivals, run_batch, 2, clock=lambda: now[0], sleep=advance)
    assert batches == [1, 2, 2, 1]
    assert latencies == pytest.approx([1.0, 1.9, 1.5, 1.9, 1.8, 2.7])
    assert percentiles(latencies)["calls"] == 6


def test_arrivals_have_the_asked_rate():
    arrivals = poisson(1000, 10)
    assert arrivals[-1] == pytest.approx(10, rel=0.05)
    gaps = np.diff(arrivals)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of exponential gaps


@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
def test_rows_fit_the_network(network):
    requests = [request for batch in check_batches(network).values() for request in batch]
    longest = max(request.input_ids.shape[1] for request in requests)
    assert longest == network.longest
    calls = workloads(network)
    assert sum(calls["documents of mixed lengths"]) == pytest.approx(network.documents * network.tokens, rel=0.1)
    assert len(calls["full batch"]) == network.most_rows


def test_wheels_archives_and_folders_are_unpacked(tmp_path):
    carried, site = tmp_path / "carried", tmp_path / "site"
    carried.mkdir()
    site.mkdir()
    with pytest.raises(SystemExit, match="no wheels"):
        unpack(carried, site)
    with zipfile.ZipFile(carried / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/__init__.py", "")
    with tarfile.open(carried / "b.tar.xz", "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("b/__init__.py"), io.BytesIO())
    (carried / "c").mkdir()
    (carried / "c/__init__.py").touch()
    (carried / "notes.txt").touch()
    assert unpack(carried, site) == ["a-1-py3-none-any.whl", "b.tar.xz", "c"]
    assert sorted(path.name for path in site.iterdir()) == ["a", "b", "c"]
