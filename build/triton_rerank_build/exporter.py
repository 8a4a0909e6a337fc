"""`export`: turn a checkpoint into an installed model repository whose graph was compared with PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING

from triton_rerank_build.checkpoints.layout import TextLayout
from triton_rerank_build.checkpoints.resolve import DEMO, Checkpoint, resolve_checkpoint
from triton_rerank_build.contract import EXPORTER_VERSION, IR_VERSION, MODEL_FILE, OPSET, PRECISIONS, TOKENIZER_FILE
from triton_rerank_build.errors import RepositoryError, UnsupportedModelError
from triton_rerank_build.graphs.memory import longest_pair, most_pairs
from triton_rerank_build.graphs.onnx import export_onnx
from triton_rerank_build.late_interaction.export import LateExport, export_late
from triton_rerank_build.late_interaction.settings import LateOptions
from triton_rerank_build.repository.configs import gpu_config
from triton_rerank_build.repository.install import check_writable, exclusive, install, mark_version, measure, staging
from triton_rerank_build.repository.layout import complete_from_template, padded_graph, template_repository
from triton_rerank_build.repository.manifest import Manifest, now, read_manifest, tool_versions
from triton_rerank_build.repository.verify import differences
from triton_rerank_build.support.extras import require_build_extra
from triton_rerank_build.support.progress import Steps, logger

if TYPE_CHECKING:
    from triton_rerank_build.parity.record import Parity

_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
# tokenizer.json (17 MB with XLM-R's 250,000 pieces) and the tensors that stay fp32 at int8 (42 MB, bge-reranker-v2-m3).
_OTHER_BYTES = 100_000_000


def export(
    checkpoint: str,
    *,
    repository: str | Path = "model_repository",
    precision: str = "fp32",
    max_length: int | None = None,
    revision: str | None = None,
    force: bool = False,
    late_interaction: LateOptions | None = None,
    relevant_label: int | None = None,
) -> Manifest:
    """Export a checkpoint to ONNX, compare the graph with PyTorch, and install it into a model repository.

    An intact installation of the same checkpoint, precision and length is left as it is. It gets the committed files
    that it lacks, if an earlier release made it.

    Args:
        checkpoint: A local folder, an id on the Hugging Face hub, `demo` or `demo-late`. A checkpoint with an
            artifact.metadata file is ColBERT's and is installed for late interaction.
        repository: Folder of the Triton model repository; made, with its configuration files, if missing.
        precision: fp32, fp16 for GPUs, or int8 for CPUs (cross-encoders only).
        max_length: Longest pair in tokens, or longest document in late interaction. Default: the checkpoint's limit;
            for pairs at fp16, at most what a GPU's kernels count in a batch of `max_batch_size` rows.
        revision: Branch, tag or commit on the hub.
        force: Replace a different installation, or one whose manifest cannot be read.
        late_interaction: Export the encoder of any checkpoint for late interaction, with these options.
        relevant_label: Of a head with two labels, the index of the one that stands for relevance: the logit is its own
            less the other's. By default 1.

    Returns:
        The manifest of the installation; a `LateManifest` after an export for late interaction.

    Raises:
        UnsupportedModelError: The checkpoint is not a supported cross-encoder, or `max_length` is out of range.
        ParityError: The graph's logits differ from PyTorch's, or at int8 their order does; nothing was installed.
        RepositoryError: The repository holds another installation and `force` is not given, is read-only, is being
            written by another process, or has too little free space.
        MissingExtraError: The extra `export` is not installed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    require_build_extra()
    repository = Path(repository)
    check_writable(repository)
    steps = Steps(6)
    with steps.step(f"finding the checkpoint {checkpoint}"):
        source = resolve_checkpoint(
            checkpoint, revision, late_interaction=late_interaction is not None, label=relevant_label
        )
        length = source.resolve_max_length(max_length)
    if source.late_interaction:
        if precision == "int8":
            raise UnsupportedModelError(f"{checkpoint}: late interaction is exported at fp32 or fp16, not at int8")
        options = late_interaction or LateOptions()
        return export_late(LateExport(source, repository, precision, max_length, options, force), steps)
    if source.others_network and precision != "fp32":
        raise UnsupportedModelError(
            f"{checkpoint} is of type {source.family!r}, which is exported from transformers' own network, at fp32 only"
        )
    with exclusive(repository):
        if precision == "fp16":
            length = _countable_length(source, gpu_config(repository).max_batch_size, max_length, length)
        present = _present(repository, source, precision, length, force)
        if present is not None:
            complete_from_template(repository, template_repository())
            mark_version(repository, present)
            logger.info("      %s is installed and intact: nothing to do", checkpoint)
            return present
        return _export(source, repository, precision, length, steps)


def _countable_length(source: Checkpoint, rows: int, asked: int | None, length: int) -> int:
    """The longest pair, up to `length`, of which a batch of `rows` stays within what a GPU's kernels count.

    Raises:
        UnsupportedModelError: `asked` is longer.
    """
    fitting = longest_pair(rows, source.intermediate_size, source.padded_heads)
    if length <= fitting:
        return length
    most_rows = most_pairs(length, source.intermediate_size, source.padded_heads)
    reason = (
        f"a batch of {rows} rows (max_batch_size of cross_encoder/config.pbtxt) beyond {fitting} tokens has more "
        f"elements than GPU kernels count; for {length} tokens set max_batch_size to {most_rows} in all models"
    )
    if asked is not None:
        raise UnsupportedModelError(f"max_length {length} does not fit: {reason}")
    logger.info("      up to %d of its %d tokens: %s", fitting, length, reason)
    return fitting


def _present(repository: Path, source: Checkpoint, precision: str, max_length: int, force: bool) -> Manifest | None:
    """The manifest if the same export is installed and intact; None if it has to be made.

    Raises:
        RepositoryError: Another installation, or an unreadable manifest, is there and `force` is not given.
    """
    try:
        manifest = read_manifest(repository)
    except RepositoryError:
        if not force:
            raise
        manifest = None
    if manifest is None:
        return None
    wanted = (source.revision, precision, max_length, source.relevant)
    if (manifest.revision, manifest.precision, manifest.max_length, manifest.relevant) != wanted:
        if force or _is_earlier_demo(manifest, source, precision, max_length):
            return None
        raise RepositoryError(
            f"{repository} holds {manifest.describe(source.name, source.revision)}; use --force to replace it"
        )
    if manifest.exporter != EXPORTER_VERSION or differences(repository, manifest.artefacts):
        return None
    return manifest


def _is_earlier_demo(manifest: Manifest, source: Checkpoint, precision: str, max_length: int) -> bool:
    """Whether another release's demo is installed: it differs in its revision only, and can be made again."""
    alike = (manifest.checkpoint, manifest.precision, manifest.max_length) == (source.name, precision, max_length)
    return alike and source.name == DEMO


def _export(source: Checkpoint, repository: Path, precision: str, max_length: int, steps: Steps) -> Manifest:
    import torch

    from triton_rerank_build.graphs.networks import load_network
    from triton_rerank_build.graphs.tokenizer import check_vocabulary, load_tokenizer, save_tokenizer
    from triton_rerank_build.parity.compare import make_batches, prove, reference_logits
    from triton_rerank_build.parity.packed import prove_packed
    from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS

    with steps.step("loading tokenizer and weights"):
        tokenizer = load_tokenizer(source)
        network = load_network(source, tokenizer)
        layout = network.layout
        network.check_ids([*PAIRS, *HARD_PAIRS])
        check_vocabulary(tokenizer, network.model.config.vocab_size, source.name)
        weight_bytes = network.model.num_parameters() * _BYTES[precision]
    with staging(repository, weight_bytes + _OTHER_BYTES) as staged:
        with steps.step("computing the reference logits in PyTorch"):
            batches = make_batches(tokenizer, max_length, layout)
            expected = reference_logits(network.logits, batches)
        with steps.step(f"exporting to ONNX, {precision}"):
            dtype = torch.float16 if precision == "fp16" else torch.float32
            graph = network.graph(dtype, max_length)
            try:
                export_onnx(graph, staged, precision=precision, max_length=max_length)
            except Exception as error:
                if not source.others_network:
                    raise
                reason = (str(error).strip().splitlines() or [repr(error)])[-1]
                raise UnsupportedModelError(
                    f"{source.name} is of type {source.family!r}, and torch cannot export transformers' network of it: "
                    f"{reason}"
                ) from error
            # Frees what the graph did not take over.
            del network, graph
            save_tokenizer(tokenizer, staged / TOKENIZER_FILE, max_length=max_length, pad_id=layout.pad_id)
        if source.relevant is not None:
            logger.info("      two labels: the logit is that of label %d less that of the other", source.relevant)
        with steps.step("comparing the graph with PyTorch"):
            padded, packed = prove(padded_graph(staged), batches, expected, precision), None
            _log_proof("padded", padded)
            if precision == "fp16":
                packed = prove_packed(staged / MODEL_FILE, batches, expected, precision)
                _log_proof("packed", packed)
        with steps.step(f"installing into {repository}"):
            manifest = _manifest(source, precision, max_length, padded, packed, staged, layout)
            complete_from_template(repository, template_repository())
            install(staged, repository, manifest)
    return manifest


def _log_proof(rows: str, proof: "Parity") -> None:
    logger.info(
        "      %s rows: worst difference %.2g (%s), Kendall's tau %.4f",
        rows,
        proof.worst_difference,
        proof.worst_batch,
        proof.kendall_tau,
    )


def _manifest(
    source: Checkpoint,
    precision: str,
    max_length: int,
    parity: "Parity",
    packed: "Parity | None",
    staged: Path,
    layout: TextLayout,
) -> Manifest:
    return Manifest(
        checkpoint=source.name,
        revision=source.revision,
        family=source.family,
        precision=precision,
        max_length=max_length,
        opset=OPSET,
        ir_version=IR_VERSION,
        exporter=EXPORTER_VERSION,
        parity=parity,
        artefacts=measure(staged),
        tools=tool_versions(),
        created=now(),
        activation=source.activation,
        relevant=source.relevant,
        token_types=bool(layout.token_types),
        packed=packed,
        layout=layout,
    )
