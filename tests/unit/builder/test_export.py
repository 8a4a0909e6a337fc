"""Tiny checkpoints of every family, exported and compared with transformers."""

import re
from functools import cache

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support.tiny_exports import TinyExport
from support.tiny_models import FAMILIES, LIMIT, tiny_checkpoint
from triton_rerank_build import Manifest, UnsupportedModelError, export, verify
from triton_rerank_build.cli.export import summary
from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS
from triton_rerank_build.repository.layout import template_repository

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}


def token_mask(encoded):
    """`attention_mask` as the graph takes it, from transformers' mask and token types."""
    mask = encoded["attention_mask"].numpy()
    return mask + encoded["token_type_ids"].numpy() if "token_type_ids" in encoded else mask


class Exported:
    """A tiny checkpoint and its installed graph of padded rows."""

    def __init__(self, made: TinyExport) -> None:
        self.checkpoint, self.repository, self.manifest = made.checkpoint, made.repository, made.manifest
        self.graph_path = made.graph
        self.session = onnxruntime.InferenceSession(str(self.graph_path), providers=["CPUExecutionProvider"])

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": input_ids.astype(np.int32), "attention_mask": attention_mask.astype(np.int32)}
        return self.session.run(["logits"], feed)[0]

    def reference(self, encoded: dict[str, torch.Tensor]) -> np.ndarray:
        model = AutoModelForSequenceClassification.from_pretrained(self.checkpoint).eval()
        with torch.inference_mode():
            return model(**encoded).logits.numpy()

    def encode(self, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        queries, documents = zip(*pairs, strict=True)
        return tokenizer(
            list(queries),
            list(documents),
            padding=True,
            truncation="only_second",
            max_length=LIMIT,
            return_tensors="pt",
            return_token_type_ids="bert" in str(self.manifest.family) and "roberta" not in self.manifest.family,
        )


@pytest.fixture(scope="module")
def exported(tiny_exports):
    return cache(lambda family, precision: Exported(tiny_exports(family, precision)))


every_family = pytest.mark.parametrize("family", FAMILIES)
every_precision = pytest.mark.parametrize("precision", ["fp32", "fp16"])


@every_family
@every_precision
def test_logits_equal_those_of_transformers_in_a_padded_batch(exported, family, precision):
    model = exported(family, precision)
    encoded = model.encode([pair for pair in PAIRS if len(pair[0]) < 40])

    found = model.logits(encoded["input_ids"].numpy(), token_mask(encoded))

    expected = model.reference(dict(encoded))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= TOLERANCE[precision]
    assert expected.std() > 0.05, "logits that are all the same would prove nothing"


@every_family
@every_precision
@pytest.mark.parametrize("num_pairs", [1, 2, 7])
@pytest.mark.parametrize("length", [1, 2, 17, LIMIT])
def test_any_number_of_pairs_of_any_length_runs(exported, family, precision, num_pairs, length):
    ids = np.full((num_pairs, length), 7)
    logits = exported(family, precision).logits(ids, np.ones_like(ids))
    assert logits.shape == (num_pairs, 1)
    assert np.isfinite(logits).all()


@every_family
@every_precision
def test_a_row_of_padding_alone_is_finite_and_harms_no_neighbour(exported, family, precision):
    model = exported(family, precision)
    encoded = model.encode(list(PAIRS[:1]))
    ids, mask = encoded["input_ids"].numpy(), token_mask(encoded)
    padding = np.full_like(ids, 1)

    logits = model.logits(np.concatenate([ids, padding]), np.concatenate([mask, np.zeros_like(mask)]))

    assert np.isfinite(logits).all()
    assert logits[0] == pytest.approx(model.logits(ids, mask)[0], abs=1e-5)


@every_family
def test_padding_changes_nothing(exported, family):
    model = exported(family, "fp32")
    encoded = model.encode(list(PAIRS[:1]))
    ids, mask = encoded["input_ids"].numpy()[:, :40], token_mask(encoded)[:, :40]
    pad_id = Tokenizer.from_file(str(model.repository / "tokenizer/1/tokenizer.json")).padding["pad_id"]
    wide = np.full((1, LIMIT), pad_id)
    wide[:, : ids.shape[1]] = ids

    padded = model.logits(wide, np.pad(mask, ((0, 0), (0, LIMIT - mask.shape[1]))))

    assert padded == pytest.approx(model.logits(ids, mask), abs=1e-5)


@every_family
@every_precision
def test_the_graph_loads_in_the_oldest_runtime_and_has_the_agreed_signature(exported, family, precision):
    model = onnx.load(str(exported(family, precision).graph_path), load_external_data=False)
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    signature = [
        (value.name, value.type.tensor_type.elem_type, [dim.dim_param or dim.dim_value for dim in shape.dim])
        for value in (*model.graph.input, *model.graph.output)
        for shape in [value.type.tensor_type.shape]
    ]
    assert signature == [
        ("input_ids", onnx.TensorProto.INT32, ["num_pairs", "length"]),
        ("attention_mask", onnx.TensorProto.INT32, ["num_pairs", "length"]),
        ("logits", onnx.TensorProto.FLOAT, ["num_pairs", 1]),
    ]


@every_family
def test_fp16_keeps_what_can_overflow_in_fp32(exported, family):
    model = onnx.shape_inference.infer_shapes(onnx.load(str(exported(family, "fp16").graph_path)))
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        if node.op_type in {"LayerNormalization", "Softmax", "Tanh"}:
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    # All but the two of the classifier.
    assert sum(types[node.output[0]] == onnx.TensorProto.FLOAT16 for node in products) == len(products) - 2


@every_family
@every_precision
def test_tokens_are_counted_in_integers(exported, family, precision):
    # bf16 represents integers exactly only up to 256.
    model = onnx.shape_inference.infer_shapes(onnx.load(str(exported(family, precision).graph_path)))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    sums = [node for node in model.graph.node if node.op_type == "CumSum"]
    # BERT's positions are not counted.
    assert [types[node.output[0]] for node in sums] == [onnx.TensorProto.INT32] * (family != "bert")


@every_family
def test_no_path_of_this_machine_is_left_in_the_graph(exported, family):
    content = exported(family, "fp32").graph_path.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


@every_family
@every_precision
def test_openvino_computes_the_same(exported, family, precision):
    model = exported(family, precision)
    encoded = model.encode(list(PAIRS[:4]))
    ids, mask = encoded["input_ids"].numpy().astype(np.int32), token_mask(encoded).astype(np.int32)
    compiled = openvino.Core().compile_model(str(model.graph_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    found = compiled({"input_ids": ids, "attention_mask": mask})[0]

    assert np.abs(found - model.reference(dict(encoded))).max() <= TOLERANCE[precision]


@pytest.mark.slow
def test_fp16_survives_activations_near_the_end_of_its_range(tmp_path):
    # The sums before the second LayerNorm reach thousands: their squares are far beyond 65,504.
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "xlm-roberta")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.output.dense.weight *= 3000
    model.save_pretrained(checkpoint)
    manifest = export(str(checkpoint), repository=tmp_path / "repository", precision="fp16")
    assert manifest.parity.worst_difference <= 2e-2


@every_family
def test_the_manifest_tells_what_was_made_and_how_it_was_proved(exported, family):
    model = exported(family, "fp32")
    manifest = model.manifest
    assert (manifest.family, manifest.precision, manifest.max_length, manifest.checkpoint) == (
        family,
        "fp32",
        LIMIT,
        "tiny",
    )
    assert 0 < manifest.parity.worst_difference <= 1e-4
    assert manifest.parity.longest == LIMIT
    artefacts = {"cross_encoder/1/model.onnx", "cross_encoder/1/model.onnx.data", "tokenizer/1/tokenizer.json"}
    assert (set(manifest.artefacts), manifest.packed) == (artefacts, None)
    assert {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "triton-rerank-build"} <= set(manifest.tools)
    for name in ("cross_encoder", "tokenizer"):
        assert Manifest.from_json((model.repository / name / "1/manifest.json").read_text()) == manifest
    assert verify(model.repository) == manifest


@every_family
def test_at_fp16_the_manifest_tells_of_three_graphs_and_both_proofs(exported, family):
    model = exported(family, "fp16")
    manifest = model.manifest
    graphs = {f"cross_encoder/1/model{kind}.onnx" for kind in ("", ".reference", ".padded")}
    assert set(manifest.artefacts) == graphs | {"cross_encoder/1/model.onnx.data", "tokenizer/1/tokenizer.json"}
    for proof in (manifest.parity, manifest.packed):
        assert 0 < proof.worst_difference <= proof.tolerance == 2e-2
        assert proof.longest == LIMIT
    assert verify(model.repository) == manifest
    assert "model.onnx takes packed rows, for ONNX Runtime on GPUs" in summary(manifest, "served")


@every_family
def test_the_saved_tokenizer_gives_the_ids_of_transformers_and_both_limits(exported, family):
    model = exported(family, "fp32")
    tokenizer = Tokenizer.from_file(str(model.repository / "tokenizer/1/tokenizer.json"))
    assert tokenizer.truncation["max_length"] == LIMIT
    assert tokenizer.padding["pad_token"] == ("[PAD]" if family == "bert" else "<pad>")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    reference = AutoTokenizer.from_pretrained(model.checkpoint)
    for query, document in (*PAIRS, *HARD_PAIRS):
        assert tokenizer.encode(query, document).ids == reference([query], [document])["input_ids"][0]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"hidden_act": "gelu_new"}, {"hidden_act": "relu"}, {"type_vocab_size": 1}])
def test_what_a_configuration_may_change_is_followed(tmp_path, overrides):
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "bert", **overrides)
    assert export(str(checkpoint), repository=tmp_path / "repository").parity.worst_difference <= 1e-4


def config_with(repository, max_batch_size):
    path = repository / "cross_encoder/config.pbtxt"
    path.parent.mkdir(parents=True)
    text = (template_repository() / "cross_encoder/config.pbtxt").read_text()
    path.write_text(re.sub(r"^max_batch_size: \d+", f"max_batch_size: {max_batch_size}", text, flags=re.M))


@pytest.mark.slow
def test_fp16_goes_as_far_as_a_gpus_kernels_count(tiny_exports, tmp_path, caplog):
    checkpoint = str(tiny_exports("bert", "fp16").checkpoint)
    # Its widest tensor has 64 elements a token: at 2^31 / 64 tokens a batch is too large.
    config_with(tmp_path, 2**31 // 64 // 70)
    told = r"max_length 75 does not fit: .* beyond 70 tokens .* to 447392 in all"
    with pytest.raises(UnsupportedModelError, match=told):
        export(checkpoint, repository=tmp_path, precision="fp16", max_length=75)
    caplog.set_level("INFO", "triton_rerank_build")
    assert export(checkpoint, repository=tmp_path, precision="fp16").max_length == 70
    assert "up to 70 of its 80 tokens: a batch of 479349 rows" in caplog.text
