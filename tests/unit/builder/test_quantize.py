"""int8: stored types, rounding, ranking compared with PyTorch, and rejection of a wrong graph."""

import json
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from support import quick_server
from support.tiny_models import FAMILIES, LIMIT, tiny_checkpoint
from triton_rerank_build import ParityError, UnsupportedModelError, export, verify
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.graphs.networks import classifier_logits
from triton_rerank_build.graphs.quantize import quantize
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.late_interaction.settings import LateOptions
from triton_rerank_build.parity.compare import (
    LOWEST_TAU,
    compare_ranking,
    kendall_tau,
    make_batches,
    prove,
    reference_logits,
)
from triton_rerank_build.parity.texts import PAIRS

every_family = pytest.mark.parametrize("family", FAMILIES)


class Quantized:
    """A tiny checkpoint at int8 and its reference logits from PyTorch."""

    def __init__(self, made):
        self.source = resolve_checkpoint(str(made.checkpoint))
        self.repository, self.manifest, self.graph_path = made.repository, made.manifest, made.graph

    @property
    def tensors(self):
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(self.graph_path).graph.initializer}

    def reference(self):
        model = load_model(self.source)
        tokenizer = load_tokenizer(self.source)
        batches = make_batches(tokenizer, LIMIT, self.manifest.layout)
        return batches, reference_logits(classifier_logits(model), batches)


@pytest.fixture(scope="module")
def quantized(tiny_exports):
    return cache(lambda family: Quantized(tiny_exports(family, "int8")))


@pytest.mark.parametrize("axis", [0, 1])
def test_no_value_moves_by_more_than_half_a_step(axis):
    values = np.random.default_rng(0).normal(size=(5000, 24)).astype(np.float32)
    values[7], values[:, 5] = 0, 0
    stored, scales = quantize(values, axis)
    assert stored.dtype == np.int8
    assert scales.shape == ((5000, 1) if axis == 0 else (1, 24))
    assert np.abs(stored * scales - values).max() <= scales.max() / 2 * 1.001
    assert np.array_equal(np.abs(stored).max(axis=1 - axis) == 127, np.abs(values).max(axis=1 - axis) > 0)


@pytest.mark.slow
@every_family
def test_matrices_and_words_are_int8_and_nothing_of_them_is_left_in_floats(quantized, family):
    tensors = quantized(family).tensors
    stored = {name.removesuffix(".int8") for name, values in tensors.items() if values.dtype == np.int8}
    matrices = {"query", "key", "value", "attention_out", "wide", "wide_out"}
    wanted = {f"layers.{layer}.{name}.weight" for layer in range(2) for name in matrices}
    assert stored == {*wanted, "embeddings.word.weight"}
    assert not stored & tensors.keys()
    assert tensors["embeddings.position.weight"].dtype == np.float32
    assert tensors["dense.weight"].dtype == np.float32


@pytest.mark.slow
@every_family
def test_the_manifest_says_how_well_it_ranks(quantized, family):
    manifest = quantized(family).manifest
    assert manifest.precision == "int8"
    assert LOWEST_TAU <= manifest.parity.kendall_tau < 1
    # A graph without rounding errors would not be int8.
    assert 1e-3 < manifest.parity.worst_difference <= manifest.parity.tolerance
    assert manifest.parity.longest == LIMIT
    assert verify(quantized(family).repository) == manifest


def requantized(path, folder, largest):
    """The graph with its int8 values rounded again, to 2 * `largest` + 1 levels."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in [name for name in tensors if name.endswith(".int8")]:
        values = numpy_helper.to_array(tensors[name]).astype(np.float32)
        scales = tensors[name.replace(".int8", ".scales")]
        coarse = np.rint(values / 127 * largest).astype(np.int8)
        tensors[name].CopyFrom(numpy_helper.from_array(coarse, name))
        scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * np.float32(127 / largest), scales.name))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.slow
def test_fewer_bits_fail_although_most_of_the_order_is_kept(quantized, tmp_path):
    # 47 levels: tau over all pairs is above LOWEST_TAU, and no logit is off by more than half a standard deviation.
    tiny = quantized("bert")
    with pytest.raises(ParityError, match=r"tau 0\.8\d\d over all pairs .*, 0\.9\d\d over pairs whose logits are more"):
        prove(requantized(tiny.graph_path, tmp_path, 23), *tiny.reference(), "int8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers.0.wide.weight.scales", "embeddings.word.weight.scales"])
def test_a_graph_with_wrong_scales_fails(quantized, tmp_path, name):
    tiny = quantized("xlm-roberta")
    model = onnx.load(tiny.graph_path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ParityError, match=r"int8 in OpenVINO does not rank as PyTorch does: Kendall's tau [-0-9.]+ "):
        prove(tmp_path / "model.onnx", *tiny.reference(), "int8")


@pytest.mark.slow
def test_a_logit_that_is_no_number_fails_and_so_does_the_opposite_order(quantized):
    batches, expected = quantized("bert").reference()
    broken = [logits.copy() for logits in expected]
    broken[3][0] = np.nan
    with pytest.raises(ParityError, match="differ by nan"):
        compare_ranking(batches, expected, broken, "OpenVINO")
    with pytest.raises(ParityError, match=r"Kendall's tau -1\.000"):
        compare_ranking(batches, expected, [-logits for logits in expected], "OpenVINO")


def test_kendalls_tau_counts_couples():
    want = np.array([1.0, 2.0, 3.0, 3.0], np.float32)
    # `want` orders five pairs; here one is reversed and one is tied.
    assert kendall_tau(want, np.array([2.0, 1.0, 2.0, 5.0], np.float32)) == pytest.approx((3 - 1) / 5)


@pytest.mark.slow
def test_triton_serves_it(quantized):
    from triton_rerank import RerankClient

    tiny = quantized("xlm-roberta")
    batches, expected = tiny.reference()
    with quick_server(tiny.repository) as server, RerankClient(server.grpc_url) as client:
        served = client.score(list(PAIRS), normalize=False)
    (index,) = [index for index, batch in enumerate(batches) if batch.name == "all pairs in one padded batch"]
    # The reference truncates some pairs; the server gets their full text.
    whole = (batches[index].attention_mask > 0).sum(axis=1)[: len(PAIRS)] < LIMIT
    assert whole.sum() >= 10
    wanted = expected[index].ravel()[: len(PAIRS)]
    assert kendall_tau(wanted[whole], np.array(served, np.float32)[whole]) >= LOWEST_TAU


def test_late_interaction_is_refused(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "bert")
    with pytest.raises(UnsupportedModelError, match="late interaction is exported at fp32 or fp16, not at int8"):
        export(str(checkpoint), repository=tmp_path / "repository", precision="int8", late_interaction=LateOptions())


@pytest.mark.slow
def test_the_scripts_that_compare_precisions(quantized, tiny_exports, tmp_path):
    tiny, fp32 = quantized("xlm-roberta"), tiny_exports("xlm-roberta", "fp32").repository
    data = tmp_path / "set"
    data.mkdir()
    lines = [json.dumps({"_id": f"d{index}", "text": document}) for index, (_, document) in enumerate(PAIRS)]
    (data / "corpus.jsonl").write_text("\n".join(lines))
    (data / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": PAIRS[0][1]}))
    (data / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")

    speed = script("precisions", fp32, tiny.repository, "--pairs=2", "--tokens=16", "--rounds=2")
    keys = [entry.partition("=")[0] for entry in speed.split()[1:]]
    assert keys[0] == "fp32_openvino_f32"
    assert {"int8_openvino_f32", "int8_onnxruntime"} <= set(keys)

    ranking = script("ranking", fp32, tiny.repository, "--beir", data)
    assert re.fullmatch(r"RESULT least_points=-?[0-9.]+ least_tau=-?[0-9.]+", ranking)

    memory = script("long_documents", tiny.repository, "--long=2", "--short=3")
    assert re.fullmatch(r"RESULT loaded_gb=0\.\d+ long_gb=0\.\d+ beside_short_gb=0\.\d+", memory)


def script(name, *arguments):
    """The last line that a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
