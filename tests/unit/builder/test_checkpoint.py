"""Checkpoints that the builder refuses, and the messages, before any weight is loaded."""

import json
import shutil

import pytest
import safetensors.torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from support.tiny_models import FAMILIES, LIMIT, tiny_checkpoint
from triton_rerank_build import UnsupportedModelError, export
from triton_rerank_build.checkpoints.resolve import inspect_folder, resolve_checkpoint
from triton_rerank_build.graphs.weights import load_model

TINY = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {family: tiny_checkpoint(tmp_path_factory.mktemp(family) / "tiny", family) for family in FAMILIES}


@pytest.fixture
def checkpoint(originals, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(originals["xlm-roberta"], tmp_path / "tiny")


def edit_config(folder, file="config.json", **fields):
    config = json.loads((folder / file).read_text())
    config.update(fields)
    (folder / file).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refusal(name):
    with pytest.raises(UnsupportedModelError) as caught:
        resolve_checkpoint(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_limit_follows_the_position_table(originals, family):
    found = resolve_checkpoint(str(originals[family]))
    assert (found.family, found.limit, found.name) == (family, LIMIT, "tiny")


@pytest.mark.parametrize(("positions", "limit"), [(8194, 8192), (514, 512)])
def test_roberta_families_lose_the_rows_up_to_the_padding_id(checkpoint, positions, limit):
    edit_config(checkpoint, max_position_embeddings=positions)
    assert resolve_checkpoint(str(checkpoint)).limit == limit


@pytest.mark.parametrize(
    ("said", "limit"), [(64, 64), (512, LIMIT), (10**30, LIMIT), (1e30, LIMIT), (0, LIMIT), ("x", LIMIT)]
)
def test_the_tokenizers_limit_counts_where_it_makes_sense(checkpoint, said, limit):
    edit_config(checkpoint, "tokenizer_config.json", model_max_length=said)
    assert resolve_checkpoint(str(checkpoint)).limit == limit


def test_max_length_must_be_within_the_limit(checkpoint):
    found = resolve_checkpoint(str(checkpoint))
    assert (found.resolve_max_length(None), found.resolve_max_length(16), found.resolve_max_length(LIMIT)) == (
        80,
        16,
        80,
    )
    for requested in (LIMIT + 1, 15, 0, -1):
        with pytest.raises(UnsupportedModelError, match=f"max_length {requested} is out of range: tiny takes 16 to 80"):
            found.resolve_max_length(requested)


def test_a_folder_is_pinned_by_its_content(checkpoint):
    before = resolve_checkpoint(str(checkpoint)).revision
    assert resolve_checkpoint(str(checkpoint)).revision == before
    edit_config(checkpoint, layer_norm_eps=1e-6)
    assert resolve_checkpoint(str(checkpoint)).revision != before


def test_a_missing_folder(tmp_path):
    assert "no such folder; a model on the Hugging Face hub is named OWNER/NAME" in refusal(tmp_path / "nothing")


def test_a_file(checkpoint):
    assert "is a file; give the folder" in refusal(checkpoint / "config.json")


# peft uses an attribute that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_lora_adapter_says_how_to_merge_it(tmp_path):
    # As peft writes it, without the base model's configuration.
    model = get_peft_model(BertForSequenceClassification(TINY), LoraConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    assert "adapter is a LoRA adapter without its base model; merge the two first: " in refusal(tmp_path / "adapter")


def test_an_empty_folder(tmp_path):
    assert "has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00"])
def test_a_broken_configuration(checkpoint, content):
    (checkpoint / "config.json").write_text(content)
    assert "config.json of tiny" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id2label": {"0": "no", "1": "yes", "2": "maybe"}}, "gives 3 logits per pair; a reranker gives 1, or 2"),
        (
            {"model_type": "new", "auto_map": {"AutoModel": "owner/new-impl--modeling.NewModel"}},
            "is of type 'new' and brings code of its own (modeling.py, by auto_map of config.json), which is never exe",
        ),
        (
            {"model_type": "bart", "is_encoder_decoder": True},
            "of type 'bart', of which transformers has no seq",
        ),
        ({"model_type": "vit"}, "of type 'vit', of which transformers has no sequence classifier"),
        ({"model_type": None}, "of type None"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "is a generative model (Qwen2ForCausalLM)"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "of this kind Qwen3-Reranker is supported"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is a generative model"),
        ({"architectures": ["XLMRobertaModel"]}, "expected a ...ForSequenceClassification architecture, found XLMRob"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
        ({"is_decoder": True}, "decoder"),
        ({"max_position_embeddings": None}, "no usable 'max_position_embeddings'"),
        ({"max_position_embeddings": 10}, "takes 8 tokens"),
    ],
)
def test_a_network_of_another_kind(checkpoint, fields, words):
    edit_config(checkpoint, **fields)
    assert words in refusal(checkpoint)


def test_a_missing_tokenizer_says_how_to_make_one(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    assert "no tokenizer.json; make one with `AutoTokenizer.from_pretrained" in refusal(checkpoint)


def test_missing_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert "no weights: neither model.safetensors nor pytorch_model.bin" in refusal(checkpoint)


def test_a_missing_shard(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "lacks model-00002-of-00002.safetensors" in refusal(checkpoint)


def test_a_head_that_was_never_trained(checkpoint):
    # transformers would initialize it with random numbers.
    weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    safetensors.torch.save_file(kept, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks 4 weights, among them classifier\.dense\.bias"):
        load_model(inspect_folder(checkpoint, name="tiny"))


def test_weights_that_are_cut_short(checkpoint):
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnsupportedModelError, match="weights of tiny cannot be loaded"):
        load_model(inspect_folder(checkpoint, name="tiny"))


def test_a_broken_tokenizer(checkpoint, tmp_path):
    (checkpoint / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json of tiny cannot be read"):
        export(str(checkpoint), repository=tmp_path / "repository")


def test_a_tokenizer_of_another_model(checkpoint, tmp_path):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] += [[f"piece{index}", -50.0] for index in range(10)]
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedModelError, match=r"gives ids up to 610, but the model has 601 embeddings"):
        export(str(checkpoint), repository=tmp_path / "repository")
    assert not (tmp_path / "repository/cross_encoder/1/manifest.json").exists()


@pytest.mark.parametrize("name", ["demo", "demo-late"])
def test_a_folder_is_never_called_like_a_checkpoint_that_we_ship(checkpoint, tmp_path, name):
    own = checkpoint.rename(tmp_path / name)
    assert resolve_checkpoint(str(own)).name == f"./{name}"


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "Identity"),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "Identity"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Sigmoid"}, "Sigmoid"),
        ("config.json", {}, None),
    ],
)
def test_the_activation_that_sentence_transformers_saves_is_read(tmp_path, file, content, name):
    path = tiny_checkpoint(tmp_path, "bert") / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **content}))
    assert resolve_checkpoint(str(tmp_path)).activation == name
