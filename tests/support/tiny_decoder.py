"""A tiny checkpoint of Qwen3-Reranker: random weights, and a byte-level tokenizer with Qwen's way to cut text."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from triton_rerank_build.checkpoints.prompts import PROMPTS
from triton_rerank_build.parity.texts import PAIRS

PROMPT = PROMPTS["qwen3"]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<think>", "</think>")
LIMIT = 320

# The pattern of Qwen's tokenizer.json. A blank belongs to the word after it, line breaks to the signs before them.
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": LIMIT,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


def tiny_decoder(folder: Path, *, seed: int = 0, num_labels: int | None = None, **overrides: object) -> Path:
    """Write a checkpoint of 3 layers x 32.

    Args:
        num_labels: Of a head in place of that over the vocabulary; None for a language model.
        overrides: Fields of the configuration.
    """
    tokenizer = tiny_qwen_tokenizer()
    fields = {"vocab_size": tokenizer.get_vocab_size() + 8, **_SIZES, **overrides}
    if num_labels is not None:
        fields |= {"num_labels": num_labels, "pad_token_id": tokenizer.token_to_id("<|endoftext|>")}
    torch.manual_seed(seed)
    kind = AutoModelForCausalLM if num_labels is None else AutoModelForSequenceClassification
    model = kind.from_config(AutoConfig.for_model("qwen3", **fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # transformers starts all at 1
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_qwen_tokenizer() -> Tokenizer:
    """The same vocabulary in every process."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(_CUT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for pair in PAIRS for text in pair] + [PROMPT.text("", ""), *PROMPT.system, "?\n.\n"] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*texts, *["yes\nno"] * 50], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    return tokenizer
