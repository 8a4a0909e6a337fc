"""The reference of late interaction: a checkpoint's weights in PyTorch, and the vectors that they give."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import UnsupportedModelError
from triton_rerank_build.late_interaction.settings import LateSettings, Side, make_row
from triton_rerank_build.parity.compare import Batch
from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS
from triton_rerank_build.support.progress import bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from triton_rerank_build.graphs.encoder_parts import HfModule

VECTORS = "vectors"
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}

_PROJECTION = "linear.weight"
_LENGTHS = (16, 33, 128, 512, 2048, 8192)


def load_encoder(checkpoint: Checkpoint) -> "tuple[HfModule, Tensor | None]":
    """The checkpoint's encoder in PyTorch, fp32, ready for inference, and ColBERT's projection [dim, hidden].

    Raises:
        UnsupportedModelError: The weights cannot be read, or some are missing.
    """
    import torch
    from transformers import AutoModel

    try:
        model, report = AutoModel.from_pretrained(
            str(checkpoint.folder),
            dtype=torch.float32,
            attn_implementation="sdpa",
            add_pooling_layer=False,
            output_loading_info=True,
        )
        projection = _read_tensor(checkpoint.folder, _PROJECTION) if checkpoint.colbert else None
    except UnsupportedModelError:
        raise
    except Exception as error:  # of many libraries: json, safetensors, torch, transformers
        raise UnsupportedModelError(f"the weights of {checkpoint.name} cannot be loaded: {error}") from error
    # transformers fills missing weights with random numbers and only warns.
    if missing := sorted(report["missing_keys"]):
        raise UnsupportedModelError(f"{checkpoint.name} lacks {len(missing)} weights, among them {missing[0]}")
    if projection is not None and projection.shape[-1] != model.config.hidden_size:
        raise UnsupportedModelError(
            f"{_PROJECTION} of {checkpoint.name} has shape {list(projection.shape)}, expected "
            f"[dim, {model.config.hidden_size}]"
        )
    return model.eval(), projection


def _read_tensor(folder: Path, name: str) -> "Tensor":
    """One tensor of the weight files, fp32; the others are not read if the format allows it."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            if name in file.keys():  # noqa: SIM118  # the file has no __contains__
                found: Tensor = file.get_tensor(name).float()
                return found
    for path in sorted(folder.glob("pytorch_model*.bin")):
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if name in weights:
            return torch.as_tensor(weights[name]).float()
    raise UnsupportedModelError(f"{folder.name} is a ColBERT checkpoint by its artifact.metadata, but has no {name}")


def make_batches(tokenizer: "Tokenizer", settings: LateSettings) -> list[Batch]:
    """The rows to compare: every text as query and as document, alone and padded, and documents of many lengths."""
    pairs = [*PAIRS, *HARD_PAIRS]
    batches = []
    for name, side, texts in (
        ("queries", settings.query, [query for query, _ in pairs]),
        ("documents", settings.document, [document for _, document in pairs]),
    ):
        rows = [make_row(tokenizer, side, text) for text in texts]
        batches += [_pad(f"{name}, number {at} alone", [row], settings.pad_id) for at, row in enumerate(rows[::4])]
        batches.append(_pad(f"{name} in one padded batch", rows, settings.pad_id))
    document = settings.document
    lengths = sorted({length for length in _LENGTHS if length < document.max_length} | {document.max_length})
    for length in lengths:
        row = _of_length(tokenizer, document, length)
        batches.append(_pad(f"a document of {length} tokens", [row], settings.pad_id))
    return batches


def _of_length(tokenizer: "Tokenizer", side: Side, length: int) -> tuple[list[int], list[int]]:
    text = " ".join(document for _, document in PAIRS)
    while len(make_row(tokenizer, side, text)[0]) < side.max_length:
        text = f"{text} {text}"
    row, mask = make_row(tokenizer, side, text)
    return row[:length], mask[:length]


def _pad(name: str, rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    input_ids = np.full((len(rows), length), pad_id, np.int32)
    attention_mask = np.zeros((len(rows), length), np.int32)
    for row, (ids, mask) in enumerate(rows):
        input_ids[row, : len(ids)], attention_mask[row, : len(ids)] = ids, mask
    return Batch(name, input_ids, attention_mask)


def reference_vectors(
    model: "HfModule", projection: "Tensor | None", batches: Sequence[Batch]
) -> list[npt.NDArray[np.float32]]:
    """[num_rows, length, dim] fp32 for each batch, from transformers' forward."""
    import torch
    from torch.nn import functional

    results = []
    with torch.inference_mode():
        for batch in bar(batches, "PyTorch"):
            ids, mask = (torch.from_numpy(array).long() for array in (batch.input_ids, batch.attention_mask))
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors = states if projection is None else states @ projection.t()
            results.append(functional.normalize(vectors, dim=-1).numpy())
    return results
