"""Families beyond BERT, RoBERTa and XLM-R, and checkpoints that are saved in other ways: logits of transformers."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank_build import UnsupportedModelError, export, verify
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.graphs.module_head import load_head
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.parity.texts import PAIRS
from triton_rerank_build.repository.layout import padded_graph

ROWS = [("why is the sky blue?", "The sky is blue."), *PAIRS[:6], ("a", "b" * 300)]


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def logits_of_graph(repository, checkpoint):
    """[num_pairs, num_labels] of the installed graph of padded rows, and of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = [list(side) for side in zip(*ROWS, strict=True)]
    encoded = tokenizer(*texts, padding=True, truncation="only_second", max_length=LIMIT, return_tensors="pt")
    types = encoded.get("token_type_ids", torch.zeros_like(encoded["input_ids"]))
    mask = encoded["attention_mask"] * (1 + types)
    feed = {"input_ids": encoded["input_ids"].int().numpy(), "attention_mask": mask.int().numpy()}
    graph = padded_graph(repository / "cross_encoder/1")
    found = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    with torch.inference_mode():
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
        return found, model(**encoded).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layers"), [("camembert", 2), ("electra", 2), ("distilbert", 2), ("modernbert", 3)])
def test_both_graphs_of_a_family_have_the_logits_of_transformers(tmp_path, family, layers):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", family, num_hidden_layers=layers)
    manifest = export(str(checkpoint), repository=tmp_path / "repository", precision="fp16")
    assert manifest.token_types == (family == "electra")
    assert manifest.packed.worst_difference < 2e-2
    assert verify(tmp_path / "repository") == manifest

    found, expected = logits_of_graph(tmp_path / "repository", checkpoint)
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_other_classifiers_are_exported_from_transformers_own_forward(tmp_path, family):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", family, num_hidden_layers=2)
    with pytest.raises(UnsupportedModelError, match=f"is of type '{family}', which is exported from .* at fp32 only"):
        export(str(checkpoint), repository=tmp_path / "repository", precision="fp16")
    manifest = export(str(checkpoint), repository=tmp_path / "repository")
    assert (manifest.family, manifest.max_length) == (family, LIMIT)
    found, expected = logits_of_graph(tmp_path / "repository", checkpoint)
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 1e-4


def save_module(folder, kind, config, layer=None, prefix=""):
    """A module as sentence-transformers saves it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if layer is not None:
        weights = {prefix + name: value for name, value in layer.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")
    return {"path": folder.name, "type": f"sentence_transformers.models.{kind}"}


def tiny_ettin(folder):
    """The modules of an Ettin reranker around a tiny ModernBERT."""
    tiny_checkpoint(folder, "modernbert")
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(1)
    dense, norm, out = torch.nn.Linear(32, 32), torch.nn.LayerNorm(32), torch.nn.Linear(32, 1)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(out.weight)
    gelu, identity = ("torch.nn.modules." + name for name in ("activation.GELU", "linear.Identity"))
    shape = {"in_features": 32, "out_features": 32, "bias": True, "activation_function": gelu}
    pooling = {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}
    entries = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        save_module(folder / "1_Pooling", "Pooling", pooling),
        save_module(folder / "2_Dense", "Dense", shape, dense, "linear."),
        save_module(folder / "3_LayerNorm", "LayerNorm", {"dimension": 32}, norm, "norm."),
        save_module(
            folder / "4_Dense", "Dense", shape | {"out_features": 1, "activation_function": identity}, out, "linear."
        ),
    ]
    (folder / "modules.json").write_text(json.dumps([e | {"idx": n, "name": str(n)} for n, e in enumerate(entries)]))
    return folder, torch.nn.Sequential(dense, torch.nn.GELU(), norm, out)


@pytest.mark.slow
def test_modules_after_modernbert_are_its_head(tmp_path):
    checkpoint, head = tiny_ettin(tmp_path / "tiny")
    export(str(checkpoint), repository=tmp_path / "repository")
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint).eval()
    session = onnxruntime.InferenceSession(padded_graph(tmp_path / "repository/cross_encoder/1"))
    for pair in ROWS:
        encoded = tokenizer(*pair, truncation="only_second", max_length=LIMIT, return_tensors="pt")
        feed = {name: encoded[name].int().numpy() for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            expected = head(model(**encoded).last_hidden_state[:, 0]).item()
        assert session.run(None, feed)[0].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("module", "fields", "words"),
    [
        ("1_Pooling", {"pooling_mode": "mean"}, "pools by 'mean'"),
        ("2_Dense", {"activation_function": "my.module.Own"}, "has the activation Own"),
        ("2_Dense", {"use_residual": True}, "has a residual"),
        ("2_Dense", {"in_features": 31}, "2_Dense of tiny cannot be read"),
        ("4_Dense", {"out_features": 2}, "4_Dense of tiny cannot be read"),
    ],
)
def test_modules_that_cannot_be_exported_are_refused(tmp_path, module, fields, words):
    checkpoint, _ = tiny_ettin(tmp_path / "tiny")
    path = checkpoint / module / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UnsupportedModelError, match=words):
        load_head(resolve_checkpoint(str(checkpoint)).head, "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "relevant"), [("bert", None), ("roberta", 0)])
def test_of_two_labels_the_logit_is_the_difference(tmp_path, family, relevant):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", family, num_labels=2)
    manifest = export(str(checkpoint), repository=tmp_path / "repository", relevant_label=relevant)
    assert manifest.relevant == (1 if relevant is None else 0)
    found, expected = logits_of_graph(tmp_path / "repository", checkpoint)
    softmax = torch.tensor(expected).softmax(1)[:, manifest.relevant]
    assert torch.sigmoid(torch.tensor(found[:, 0])).numpy() == pytest.approx(softmax.numpy(), abs=1e-5)


def test_a_label_is_chosen_of_two(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", "bert")
    with pytest.raises(UnsupportedModelError, match="gives one logit per pair, so it has no label to choose"):
        resolve_checkpoint(str(checkpoint), label=1)
    edit_config(checkpoint, id2label={"0": "no", "1": "yes"})
    assert resolve_checkpoint(str(checkpoint)).relevant == 1
    with pytest.raises(UnsupportedModelError, match="so label 2 cannot stand for relevance"):
        resolve_checkpoint(str(checkpoint), label=2)


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_what_a_configuration_leaves_out_has_the_default_of_transformers(tmp_path, family):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", family)
    edit_config(checkpoint, pad_token_id=None, architectures=None)
    found = resolve_checkpoint(str(checkpoint))
    assert found.limit == LIMIT
    assert load_model(found).config.pad_token_id == (1 if family == "roberta" else 0)


@pytest.mark.parametrize("wrapper", ["module.", "model."])
def test_weights_of_a_wrapped_network_are_found(tmp_path, wrapper):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", "bert")
    before = load_model(resolve_checkpoint(str(checkpoint))).state_dict()
    path = checkpoint / "model.safetensors"
    weights = {wrapper + name: tensor for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    after = load_model(resolve_checkpoint(str(checkpoint))).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_transformer_of_a_folder_of_modules_is_found(tmp_path):
    root = tmp_path / "root"
    tiny_checkpoint(tmp_path / "tiny", "bert").rename(tmp_path / "0_Transformer")
    root.mkdir()
    shutil.move(tmp_path / "0_Transformer", root)
    entry = {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.base.modules.Transformer"}
    (root / "modules.json").write_text(json.dumps([entry]))
    assert resolve_checkpoint(str(root)).folder == root / "0_Transformer"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "modules.json of root cannot be read"),
        ('[{"path": ""}]', "modules.json of root cannot be read"),
        ('[{"path": "../..", "type": "a.Transformer"}]', "outside"),
        ('[{"path": "", "type": "a.Transformer"}, {"path": "1", "type": "a.CNN"}]', "the modules Transformer, CNN"),
    ],
)
def test_unusable_modules_are_refused(tmp_path, content, words):
    root = tiny_checkpoint(tmp_path / "root", "bert")
    (root / "modules.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match=words):
        resolve_checkpoint(str(root))
