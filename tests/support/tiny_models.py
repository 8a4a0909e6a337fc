"""Tiny checkpoints of every family, random weights, with tokenizers of a few sentences."""

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification

from triton_rerank_build.checkpoints.families import family_of
from triton_rerank_build.parity.texts import PAIRS

FAMILIES = ("bert", "roberta", "xlm-roberta")
"""The families that the tests of every precision run over; test_families.py has the others."""
LIMIT = 80

# Names of the sizes that differ from BERT's, and sizes that make a difference.
_SIZES = {
    "distilbert": {"dim": 32, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    # Layers of both kinds, the local ones with a window far below the limit.
    "modernbert": {
        "num_hidden_layers": 3,
        "global_attn_every_n_layers": 2,
        "local_attention": 16,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
        "norm_bias": True,
    },
}
_VOCAB = 600
_LONGEST_PIECE = 12
_TEXTS = [text for pair in PAIRS for text in pair]
# Families whose tokenizers are of another's kind.
_TOKENIZER_OF = {
    "camembert": "xlm-roberta",
    "electra": "bert",
    "distilbert": "bert",
    "modernbert": "bert",
    "deberta-v2": "bert",
    "mpnet": "roberta",
}


def tiny_checkpoint(
    folder: Path, family: str, *, seed: int = 0, tokenizer_of: str | None = None, **overrides: object
) -> Path:
    """Write a checkpoint of 1 layer x 32 that takes 80 tokens.

    Args:
        tokenizer_of: Family of the tokenizer, `family` if None. BERT networks with XLM-R's tokenizer are published, for
            example cross-encoder/msmarco-MiniLM-L6-en-de-v1.
        overrides: Fields of the configuration.
    """
    tokenizer_of = tokenizer_of or _TOKENIZER_OF.get(family, family)
    special = _special_tokens(tokenizer_of)
    tokenizer = tiny_tokenizer(tokenizer_of)
    pad_id = tokenizer.token_to_id(special["pad_token"])
    fields = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": LIMIT + pad_id + 1 if family_of(family).counts_from_pad else LIMIT,
        "type_vocab_size": 2 if tokenizer_of == "bert" else 1,
        "pad_token_id": pad_id,
        "num_labels": 1,
        # Large enough for logits that differ between pairs.
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**fields, **_SIZES.get(family, {}), **overrides})
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers starts every bias at 0 and every LayerNorm at 1: the graph would hold one constant for all.
            if name.endswith("bias") or "norm" in name.lower():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if "[SEP]" in special.values() and family not in ("distilbert", "modernbert"):
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_tokenizer(family: str) -> Tokenizer:
    """A tokenizer of the kind that the family uses, with the same vocabulary of the parity texts in every process."""
    special = _special_tokens(family)
    first = list(
        dict.fromkeys([special["cls_token"], special["pad_token"], special["sep_token"], special["unk_token"]])
    )
    # The trainers of WordPiece and Unigram give another vocabulary in each process, that of BPE does not.
    if family == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        pieces = [*first, *(piece for piece, _ in _pieces(tokenizer, _VOCAB - len(first), "##"))]
        tokenizer.model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
        tokenizer.add_special_tokens(first)
    elif family == "roberta":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=_VOCAB, special_tokens=first, show_progress=False)
        tokenizer.train_from_iterator(_TEXTS, trainer)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        counts = _pieces(tokenizer, _VOCAB - len(first), "")
        total = sum(count for _, count in counts)
        scored = [*((token, 0.0) for token in first), *((piece, math.log(count / total)) for piece, count in counts)]
        tokenizer.model = models.Unigram(scored, unk_id=first.index("<unk>"))
        tokenizer.add_special_tokens(first)
    start, end = special["cls_token"], special["sep_token"]
    double = "" if family == "bert" else f" {end}"
    second_type = ":1" if family == "bert" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end}{double} $B{second_type} {end}{second_type}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    tokenizer.add_special_tokens([special["mask_token"]])
    return tokenizer


def _pieces(tokenizer: Tokenizer, size: int, inside: str) -> list[tuple[str, int]]:
    """Every character of the texts, and the parts of words that save the most tokens, with their counts.

    Args:
        inside: What a piece begins with that does not begin a word.
    """
    counts: Counter[str] = Counter()
    for text in _TEXTS:
        normalized = tokenizer.normalizer.normalize_str(text)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized):
            for start, end in itertools.combinations(range(len(word) + 1), 2):
                if end - start <= _LONGEST_PIECE:
                    counts[(inside if start else "") + word[start:end]] += 1
    saved = {piece: (len(piece.removeprefix(inside)) - 1) * count for piece, count in counts.items()}
    ordered = sorted(counts, key=lambda piece: (saved[piece] > 0, -saved[piece], piece))
    return [(piece, counts[piece]) for piece in ordered[:size]]


def _special_tokens(family: str) -> dict[str, str]:
    if family == "bert":
        names = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    else:
        names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), names, strict=True))
