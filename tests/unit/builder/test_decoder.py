"""Qwen3-Reranker: the layout of its prompt, and both graphs against the authors' formula."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from support.published_decoder import published_scores
from support.tiny_decoder import LIMIT, PROMPT, tiny_decoder
from triton_rerank_build import UnsupportedModelError, export, verify
from triton_rerank_build.checkpoints.layout import TextLayout
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.graphs.prompted import prompt_layout
from triton_rerank_build.graphs.rows import encode_pair
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS
from triton_rerank_build.repository.layout import padded_graph

ROWS = [("why is the sky blue?", "The sky is blue."), *PAIRS[:5], *HARD_PAIRS[:3], ("a", "b " * 300)]


def graph_scores(repository, manifest, checkpoint, pairs):
    """Sigmoids of the logits of the installed graph of padded rows, one pair at a time."""
    tokenizer = load_tokenizer(resolve_checkpoint(str(checkpoint)))
    graph = padded_graph(repository / "cross_encoder/1")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits = []
    for pair in pairs:
        ids = np.array([encode_pair(tokenizer, manifest.layout, *pair, length=LIMIT).ids], np.int32)
        logits.append(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0].item())
    return 1 / (1 + np.exp(-np.array(logits)))


@pytest.mark.slow
def test_scores_at_fp16_are_those_of_the_authors_code(tmp_path):
    checkpoint = tiny_decoder(tmp_path / "tiny")
    manifest = export(str(checkpoint), repository=tmp_path / "repository", precision="fp16")
    assert verify(tmp_path / "repository") == manifest
    assert manifest.packed.worst_difference < 2e-2
    assert not (tmp_path / "repository/cross_encoder/1/model.reference.onnx").exists()

    found = graph_scores(tmp_path / "repository", manifest, checkpoint, ROWS)
    expected = published_scores(checkpoint, ROWS, limit=LIMIT)
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 5e-3


@pytest.mark.slow
def test_a_conversion_to_a_classifier_has_the_logits_of_transformers(tmp_path):
    checkpoint = tiny_decoder(tmp_path / "tiny", num_labels=2)
    manifest = export(str(checkpoint), repository=tmp_path / "repository", max_length=LIMIT)
    tokenizer = load_tokenizer(resolve_checkpoint(str(checkpoint)))
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    rows = [encode_pair(tokenizer, manifest.layout, *pair, length=LIMIT).ids for pair in ROWS]
    with torch.inference_mode():
        logits = np.concatenate([model(torch.tensor([ids])).logits.numpy() for ids in rows])
    chances = torch.tensor(logits).softmax(1)[:, 1].numpy()
    found = graph_scores(tmp_path / "repository", manifest, checkpoint, ROWS)
    assert np.abs(found - chances).max() < 1e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


def test_only_the_document_is_cut_and_the_prompt_stays(tiny):
    source = resolve_checkpoint(str(tiny))
    tokenizer = load_tokenizer(source)
    layout = prompt_layout(tokenizer, PROMPT, source)
    row = encode_pair(tokenizer, layout, "why? " * 30, "because " * 200, length=200, query_length=20)
    assert len(row) == 200
    text = tokenizer.decode(row.ids, skip_special_tokens=False)
    assert text.startswith(PROMPT.system[0] + "<Instruct>: " + PROMPT.instruction + "\n<Query>: why?")
    assert "\n<Document>: because because" in text
    assert text.endswith(PROMPT.end)
    assert TextLayout.from_dict(json.loads(json.dumps(asdict(layout)))) == layout


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_sliding_window": True}, "attends in a sliding window"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"stretches its positions \(yarn\)"),
        ({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}, "whose prompt is not known"),
    ],
)
def test_other_decoders_are_refused(tiny, tmp_path, fields, words):
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UnsupportedModelError, match=words):
        resolve_checkpoint(str(folder))
