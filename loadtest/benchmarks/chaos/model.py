"""Two tiny checkpoints, the searches of the callers, and what transformers computes for them."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.variants import CROSS_ENCODER
from load.workload import Search
from triton_rerank_build import export
from triton_rerank_build.contract import EXPORTER_VERSION
from triton_rerank_build.support.files import cache_folder, locked

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = [first + vowel + last for first in "bdfklmnprst" for vowel in "aeiou" for last in "kmnst"]
LONGEST = 1_100
"""Tokens of a pair at most: a text of this length needs more memory than a server takes at its start."""
MICRO_BATCH = 256
TOLERANCE = 2e-3
"""Between fp32 in PyTorch and in OpenVINO."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, its repository, and the right answers.

    Attributes:
        name: What `model_info` calls the checkpoint.
        repository: A model repository.
        logits: Those of each search's documents, from PyTorch.
    """

    name: str
    repository: Path
    logits: Sequence[Sequence[float]]


def searches_of(count: int = 60, documents: int = 12) -> list[Search]:
    """Searches whose texts are short, since this is not about speed; the same in every run."""
    chance = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))

    return [Search(text(1, 3), tuple(text(2, 8) for _ in range(documents))) for _ in range(count)]


def made_model(seed: int, searches: Sequence[Search]) -> Model:
    """The model of a seed, made on first use and kept in the cache folder."""
    name = f"chaos-{seed}"
    folder = cache_folder() / f"bench-{name}-{EXPORTER_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, repository = folder / name, folder / "repository"
    with locked(folder / "lock", wait=True):
        if not (checkpoint / "config.json").exists():
            write_checkpoint(checkpoint, seed)
        export(str(checkpoint), repository=repository, precision="fp32")
        config = repository / CROSS_ENCODER
        text = config.read_text().replace('string_value: "auto"', 'string_value: "f32"')
        config.write_text(text.replace('string_value: "2048"', f'string_value: "{MICRO_BATCH}"'))
    return Model(name, repository, reference(checkpoint, searches))


def write_checkpoint(folder: Path, seed: int) -> None:
    """A BERT cross-encoder with random weights whose vocabulary is WORDS."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification

    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4096,
        max_position_embeddings=LONGEST,
        initializer_range=0.3,
        num_labels=1,
    )
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, SPECIAL, strict=True))}
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def reference(checkpoint: Path, searches: Sequence[Search]) -> list[list[float]]:
    """Logits from transformers, in its own tokenizer and its own forward."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    network = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    found = []
    for search in searches:
        pairs = tokenizer([search.query] * len(search.documents), list(search.documents), padding=True)
        with torch.no_grad():
            logits = network(**pairs.convert_to_tensors("pt")).logits
        found.append([float(logit) for logit in logits[:, 0]])
    return found
