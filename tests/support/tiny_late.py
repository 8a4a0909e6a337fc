"""A tiny checkpoint in the layout of colbert-ir/colbertv2.0, the same bits on every machine."""

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HIDDEN, LAYERS, WIDE, DIM, POSITIONS = 32, 2, 64, 16, 96
QUERY_LENGTH, DOCUMENT_LENGTH = 32, 48

_SPECIAL = ("[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("the", "sky", "blue", "why", "is", "water", "boil", "##ing", "train", "mountain", "of", "to")
METADATA = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": QUERY_LENGTH,
    "doc_maxlen": DOCUMENT_LENGTH,
    "dim": DIM,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "similarity": "cosine",
}

# Texts for the tokenization rules: short and over-long, punctuation only, punctuation inside, empty, other scripts.
QUERIES = (
    "why is the sky blue?",
    "boiling",
    "trains to the mountain, " * 12,
    "?!",
    "WHY is THE sky... [MASK] blue",
)
DOCUMENTS = (
    "The sky is blue.",
    "Water boils - at 100 degrees (of Celsius); on a mountain: at 90!",
    "of a train to the mountain " * 20,
    "...",
    "",
    "é à ü ß 山 blue",
)


def vocabulary() -> dict[str, int]:
    """Special tokens, marks, letters and digits, at the start of a word and inside, and a few words."""
    letters = string.ascii_lowercase + string.digits
    tokens = [*_SPECIAL, *string.punctuation, *letters, *(f"##{letter}" for letter in letters), *_WORDS]
    return {token: index for index, token in enumerate(tokens)}


def tiny_colbert(folder: Path, **metadata: object) -> Path:
    """Write the checkpoint.

    Args:
        metadata: Fields of artifact.metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    special["mask_token"] = "[MASK]"
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    config = {
        "architectures": ["HF_ColBERT"],
        "model_type": "bert",
        "vocab_size": len(vocabulary()),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": WIDE,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "artifact.metadata").write_text(json.dumps(METADATA | metadata))
    save_file(_weights(), folder / "model.safetensors", {"format": "pt"})
    return folder


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


def _weights() -> dict[str, np.ndarray]:
    # PCG64 and its normal numbers are the same on every machine and in every numpy.
    generator = np.random.Generator(np.random.PCG64(7))

    def numbers(*shape: int, around: float = 0.0, scale: float = 0.3) -> np.ndarray:
        return (around + scale * generator.standard_normal(shape)).astype(np.float32)

    def dense(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": numbers(rows, columns), f"{name}.bias": numbers(rows, scale=0.1)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}.weight": numbers(HIDDEN, around=1.0, scale=0.1),
            f"{name}.bias": numbers(HIDDEN, scale=0.1),
        }

    weights = {
        "bert.embeddings.word_embeddings.weight": numbers(len(vocabulary()), HIDDEN),
        "bert.embeddings.position_embeddings.weight": numbers(POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": numbers(2, HIDDEN),
        **norm("bert.embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        name = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            weights |= dense(f"{name}.attention.self.{part}", HIDDEN, HIDDEN)
        weights |= dense(f"{name}.attention.output.dense", HIDDEN, HIDDEN) | norm(f"{name}.attention.output.LayerNorm")
        weights |= dense(f"{name}.intermediate.dense", WIDE, HIDDEN)
        weights |= dense(f"{name}.output.dense", HIDDEN, WIDE) | norm(f"{name}.output.LayerNorm")
    weights |= dense("bert.pooler.dense", HIDDEN, HIDDEN)
    return weights | {"linear.weight": numbers(DIM, HIDDEN)}
