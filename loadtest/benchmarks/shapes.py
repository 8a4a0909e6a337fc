"""Checkpoints with random weights in the shapes of the BAAI rerankers, for size, memory and speed."""

import json
import shutil
from pathlib import Path

# hidden size, layers, heads, feed-forward size, positions (two more than the longest pair)
SHAPES = {
    "base": (768, 12, 12, 3072, 514),
    "large": (1024, 24, 16, 4096, 514),
    "v2-m3": (1024, 24, 16, 4096, 8194),
}
VOCABULARY = 250_002


def random_checkpoint(shape: str, tokenizer_from: Path, folder: Path) -> Path:
    """Create a checkpoint of one of SHAPES with another checkpoint's XLM-R tokenizer, unless it exists.

    Args:
        shape: A key of SHAPES.
        tokenizer_from: Checkpoint folder with the tokenizer files to copy.
        folder: Parent folder of the checkpoints.
    """
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    target = folder / f"random-{shape}"
    if (target / "config.json").exists():
        return target
    hidden, layers, heads, feed_forward, positions = SHAPES[shape]
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=1,
    )
    torch.manual_seed(0)
    partial = target.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    XLMRobertaForSequenceClassification(config).save_pretrained(partial)
    shutil.copy(tokenizer_from / "tokenizer.json", partial)
    settings = json.loads((tokenizer_from / "tokenizer_config.json").read_text())
    (partial / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": positions - 2}))
    partial.rename(target)
    return target
