"""The comparison with PyTorch rejects wrong graphs."""

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank_build import ParityError, UnsupportedModelError, export, exporter
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.graphs.networks import classifier_logits
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.parity.compare import (
    Batch,
    compare,
    count_swapped,
    graph_logits,
    make_batches,
    reference_logits,
)


@pytest.fixture(scope="module")
def proved(tiny_exports):
    """Batches, the reference, and the path of a correct graph."""
    made = tiny_exports("xlm-roberta", "fp32")
    source = resolve_checkpoint(str(made.checkpoint))
    tokenizer, model = load_tokenizer(source), load_model(source)
    batches = make_batches(tokenizer, LIMIT, made.manifest.layout)
    expected = reference_logits(classifier_logits(model), batches)
    return batches, expected, made.graph


def perturbed(path, folder, name, change):
    model = onnx.load(str(path))
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    values = onnx.numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(values), name))
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def test_the_right_graph_passes(proved):
    batches, expected, path = proved
    parity = compare(batches, expected, graph_logits(path, batches), 1e-4)
    assert parity.worst_difference <= 1e-4
    assert (parity.longest, parity.tolerance) == (LIMIT, 1e-4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.1.wide.weight", lambda weight: weight * 1.01),
        ("layers.0.attention_norm.bias", lambda bias: bias + 0.01),
        ("embeddings.position.weight", lambda table: np.roll(table, 1, axis=0)),
        ("out.bias", lambda bias: np.full_like(bias, np.nan)),
    ],
)
def test_a_graph_with_another_weight_fails(proved, tmp_path, name, change):
    batches, expected, path = proved
    found = graph_logits(perturbed(path, tmp_path, name, change), batches)
    with pytest.raises(ParityError, match=r"logits differ from PyTorch by .*, tolerance 0\.0001"):
        compare(batches, expected, found, 1e-4)


def test_positions_at_the_limit_are_covered(proved, tmp_path):
    batches, expected, path = proved

    def spoil_last_row(table):
        table[-1] *= -1
        return table

    found = graph_logits(perturbed(path, tmp_path, "embeddings.position.weight", spoil_last_row), batches)
    with pytest.raises(ParityError, match="logits differ"):
        compare(batches, expected, found, 1e-4)


@pytest.mark.slow
def test_nothing_is_installed_when_the_proof_fails(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "bert")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        # Larger than fp16's range, so that the graph computes infinities.
        model.bert.encoder.layer[0].intermediate.dense.weight *= 1e6
    model.save_pretrained(checkpoint)
    with pytest.raises(ParityError, match="logits differ from PyTorch by"):
        export(str(checkpoint), repository=tmp_path / "repository", precision="fp16")
    left = {path.name for path in (tmp_path / "repository").rglob("*") if path.is_file()}
    assert not left & {"manifest.json", "model.onnx", "model.onnx.data", "tokenizer.json"}
    assert not list((tmp_path / "repository").rglob("export-*.tmp"))


def test_order_counts_only_beyond_the_tolerance():
    want = np.array([0.0, 0.5, 1.0], np.float32)
    assert count_swapped(want, np.array([0.0, 1.0, 0.5], np.float32), 0.1) == 1
    assert count_swapped(want, np.array([0.0, 1.0, 0.5], np.float32), 0.6) == 0
    assert count_swapped(want, np.array([0.5, 0.5, 1.0], np.float32), 0.1) == 1


def test_a_change_of_order_within_the_tolerance_of_each_logit_fails():
    batch = Batch("two pairs", *(np.zeros((2, 3), np.int32) for _ in range(2)))
    want, got = np.array([[0.0], [0.015]], np.float32), np.array([[0.01], [0.005]], np.float32)
    with pytest.raises(ParityError, match="1 of 1 pairwise orderings differ"):
        compare([batch], [want], [got], 0.011)


def test_what_a_user_sees_of_a_difference_is_recorded_over_whole_texts_alone():
    def rows(of_texts):
        ids = np.ones((3, 1), np.int32)
        return Batch("rows", ids, ids, of_texts)

    want = [np.array([[0.0], [1e-3], [4.0]], np.float32)] * 2
    # Of the texts the first two change places; of the other rows the third moves by as much as it may.
    got = [np.array([[5e-3], [4e-3], [4.0]], np.float32), np.array([[0.0], [1e-3], [4.02]], np.float32)]
    parity = compare([rows(True), rows(False)], want, got, 0.021)
    assert parity.score_change == pytest.approx(1 / (1 + np.exp(-5e-3)) - 0.5, rel=1e-4)
    assert parity.reordered_margin == pytest.approx(1e-3, rel=1e-4)
    assert parity.worst_difference == pytest.approx(0.02, rel=1e-3)
    # A graph that keeps the order has no margin.
    assert compare([rows(True)], want[:1], want[:1], 0.02).reordered_margin == 0


def test_a_wrong_shape_or_type_fails():
    batch = Batch("one pair", *(np.zeros((1, 3), np.int32) for _ in range(2)))
    want = np.zeros((1, 1), np.float32)
    for got in (np.zeros(1, np.float32), np.zeros((1, 1), np.float64)):
        with pytest.raises(ParityError, match="one pair: logits are"):
            compare([batch], [want], [got], 1e-4)


def test_an_unknown_precision_is_refused():
    assert exporter.PRECISIONS == ("fp32", "fp16", "int8")
    with pytest.raises(ValueError, match="precision must be one of fp32, fp16, int8, got 'int4'"):
        export("demo", precision="int4")


def test_a_tokenizer_that_transformers_reads_otherwise_fails(tmp_path):
    # The lower-casing of tokenizer_config.json does not reach tokenizer.json, which is all that the server has.
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "bert")
    text = (checkpoint / "tokenizer.json").read_text().replace('"lowercase": true', '"lowercase": false')
    text = text.replace('"lowercase":true', '"lowercase":false')
    (checkpoint / "tokenizer.json").write_text(text)
    config = '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
    (checkpoint / "tokenizer_config.json").write_text(config)
    with pytest.raises((ParityError, UnsupportedModelError), match="gives other ids than transformers"):
        export(str(checkpoint), repository=tmp_path / "repository")
