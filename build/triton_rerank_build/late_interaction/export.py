"""`export` of a late-interaction checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from triton_rerank_build.checkpoints.resolve import DEMO_LATE, Checkpoint
from triton_rerank_build.contract import EXPORTER_VERSION, IR_VERSION, MODEL_FILE, OPSET, TOKENIZER_FILE
from triton_rerank_build.errors import ParityError, RepositoryError
from triton_rerank_build.graphs.onnx import write_graph
from triton_rerank_build.late_interaction.repository import (
    LATE,
    LateManifest,
    complete_late,
    read_late_manifest,
    retire_late,
)
from triton_rerank_build.late_interaction.settings import LateOptions, LateSettings, make_settings
from triton_rerank_build.parity.compare import Batch, graph_logits
from triton_rerank_build.parity.record import Parity
from triton_rerank_build.repository.install import exclusive, install, mark_version, measure, staging
from triton_rerank_build.repository.manifest import now, tool_versions
from triton_rerank_build.repository.verify import differences
from triton_rerank_build.support.progress import Steps, logger

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from triton_rerank_build.graphs.encoder_parts import HfModule

_BYTES = {"fp32": 4, "fp16": 2}
_OTHER_BYTES = 50_000_000  # tokenizer.json is the largest of the other files


@dataclass(frozen=True)
class LateExport:
    """The arguments of one export for late interaction."""

    source: Checkpoint
    repository: Path
    precision: str
    max_length: int | None
    options: LateOptions
    force: bool


def export_late(wanted: LateExport, steps: Steps) -> LateManifest:
    """Export an encoder, compare its vectors with PyTorch's, and install it; an installed reranker stays as it is.

    Args:
        wanted: The arguments of `export`.
        steps: The steps of `export`, which has resolved the checkpoint.

    Returns:
        The manifest of the installation.

    Raises:
        BuildError: As `export`.
    """
    retire_late(wanted.repository, force=wanted.force)
    with exclusive(wanted.repository, LATE):
        return _export(wanted, steps)


def _export(wanted: LateExport, steps: Steps) -> LateManifest:
    from triton_rerank_build.graphs.tokenizer import load_tokenizer
    from triton_rerank_build.late_interaction.model import VECTORS, load_encoder, make_batches, reference_vectors

    source = wanted.source
    with steps.step("loading tokenizer and weights"):
        tokenizer = load_tokenizer(source)
        model, projection = load_encoder(source)
        settings = _settings(wanted, tokenizer, model.config, projection)
        if (present := _present(wanted, settings)) is not None:
            complete_late(wanted.repository)
            mark_version(wanted.repository, present, LATE)
            logger.info("      %s is installed and intact: nothing to do", source.name)
            return present
        weight_bytes = model.num_parameters() * _BYTES[wanted.precision]
    with staging(wanted.repository, weight_bytes + _OTHER_BYTES, LATE) as staged:
        with steps.step("computing the reference vectors in PyTorch"):
            batches = make_batches(tokenizer, settings)
            expected = reference_vectors(model, projection, batches)
        with steps.step(f"exporting to ONNX, {wanted.precision}"):
            from triton_rerank_build.graphs.late_encoder import EncoderGraph

            graph = EncoderGraph(model, projection, dtype=_dtype(wanted.precision)).eval()
            longest = max(settings.query.max_length, settings.document.max_length)
            path = staged / MODEL_FILE
            write_graph(graph, path, max_length=longest, output_name=VECTORS)
            # Frees what the graph did not take over.
            del model, graph
            tokenizer.save(str(staged / TOKENIZER_FILE))
        with steps.step("comparing the graph with PyTorch"):
            parity = compare_vectors(batches, expected, graph_logits(path, batches), wanted.precision)
            logger.info("      worst difference %.2g (%s)", parity.worst_difference, parity.worst_batch)
        with steps.step(f"installing into {wanted.repository}"):
            manifest = _manifest(wanted, settings, parity, staged)
            complete_late(wanted.repository)
            install(staged, wanted.repository, manifest, LATE)
    return manifest


def _dtype(precision: str) -> "torch.dtype":
    import torch

    return torch.float16 if precision == "fp16" else torch.float32


def _settings(
    wanted: LateExport, tokenizer: "Tokenizer", config: "HfModule", projection: "torch.Tensor | None"
) -> LateSettings:
    from triton_rerank_build.graphs.tokenizer import check_same_text_ids, check_vocabulary
    from triton_rerank_build.late_interaction.settings import DEMO_LATE_OPTIONS
    from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS

    source = wanted.source
    check_vocabulary(tokenizer, config.vocab_size, source.name)
    check_same_text_ids(tokenizer, source, [text for pair in (*PAIRS, *HARD_PAIRS) for text in pair])
    return make_settings(
        source,
        tokenizer,
        DEMO_LATE_OPTIONS if source.name == DEMO_LATE and wanted.options == LateOptions() else wanted.options,
        wanted.max_length,
        pad_id=config.pad_token_id,
        vocab_size=config.vocab_size,
        dim=config.hidden_size if projection is None else projection.shape[0],
    )


def _present(wanted: LateExport, settings: LateSettings) -> LateManifest | None:
    """The manifest if the same export is installed and intact; None if it has to be made.

    Raises:
        RepositoryError: Another installation, or an unreadable manifest, is there and `force` is not given.
    """
    try:
        manifest = read_late_manifest(wanted.repository)
    except RepositoryError:
        if not wanted.force:
            raise
        manifest = None
    if manifest is None:
        return None
    asked = (wanted.source.revision, wanted.precision, settings)
    if (manifest.revision, manifest.precision, manifest.settings) != asked:
        if wanted.force:
            return None
        raise RepositoryError(
            f"{wanted.repository} holds {manifest.describe(wanted.source.name, wanted.source.revision)} for late "
            "interaction, or the same with other options; use --force to replace it"
        )
    if manifest.exporter != EXPORTER_VERSION or differences(wanted.repository, manifest.artefacts):
        return None
    return manifest


def compare_vectors(
    batches: Sequence[Batch],
    expected: Sequence[npt.NDArray[np.float32]],
    found: Sequence[npt.NDArray[np.float32]],
    precision: str,
) -> Parity:
    """Compare the graph's vectors, flat, with the reference.

    Raises:
        ParityError: A component differs by more than the tolerance or is NaN, or a shape is wrong.
    """
    from triton_rerank_build.late_interaction.model import TOLERANCE

    tolerance, worst, worst_batch = TOLERANCE[precision], 0.0, batches[0].name
    for batch, want, got in zip(batches, expected, found, strict=True):
        flat = want.reshape(len(want), -1)
        if got.shape != flat.shape or got.dtype != flat.dtype:
            raise ParityError(f"{batch.name}: vectors are {got.dtype} {got.shape}, expected {flat.dtype} {flat.shape}")
        difference = float(np.abs(got - flat).max())
        # Written so that NaN fails.
        if not difference <= tolerance:
            raise ParityError(
                f"{batch.name}: vectors differ from PyTorch by {difference:.3g}, tolerance {tolerance:.3g}"
            )
        if difference >= worst:
            worst, worst_batch = difference, batch.name
    longest = max(batch.input_ids.shape[1] for batch in batches)
    return Parity(worst, worst_batch, tolerance, sum(len(batch.input_ids) for batch in batches), longest)


def _manifest(wanted: LateExport, settings: LateSettings, parity: Parity, staged: Path) -> LateManifest:
    return LateManifest(
        checkpoint=wanted.source.name,
        revision=wanted.source.revision,
        family=wanted.source.family,
        precision=wanted.precision,
        max_length=settings.document.max_length,
        opset=OPSET,
        ir_version=IR_VERSION,
        exporter=EXPORTER_VERSION,
        parity=parity,
        artefacts=measure(staged, LATE),
        tools=tool_versions(),
        created=now(),
        settings=settings,
    )
