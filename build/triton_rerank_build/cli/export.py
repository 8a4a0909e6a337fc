"""`triton-rerank-build export`."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_rerank_build.late_interaction.settings import LateOptions
    from triton_rerank_build.parity.record import Parity
    from triton_rerank_build.repository.manifest import Manifest

_DESCRIPTION = """\
Export a checkpoint to ONNX, compare it with PyTorch on texts in many languages, and install it into a Triton
model repository. Nothing is installed unless every logit agrees (1e-4 at fp32, 2e-2 at fp16) and the order is
the same; at int8 Kendall's tau of the two orders must be 0.97 or more, over pairs whose logits are more than 0.1
apart, and 0.8 over all pairs. In late interaction every component of every vector must agree (1e-4, 1e-2).
"""
_EPILOG = """\
examples:
  triton-rerank-build export demo
  triton-rerank-build export BAAI/bge-reranker-v2-m3 --precision fp16
  triton-rerank-build export ./my-finetuned-reranker --max-length 1024 --repository /srv/models
  triton-rerank-build export colbert-ir/colbertv2.0
  triton-rerank-build export intfloat/multilingual-e5-base --late-interaction --query-prefix "query: " \
      --document-prefix "passage: "
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "export",
        help="export a checkpoint to ONNX, compare it with PyTorch, install it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a local folder, an id on the Hugging Face hub, or `demo`: a small multilingual reranker made "
        "of files from the Python package index (a sequence classifier with one logit or "
        "two labels, or Qwen3-Reranker; build/README.md lists the families); a ColBERT checkpoint, or `demo-late`, for "
        "late interaction",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the weights; fp16 is for GPUs, int8 for CPUs. Inputs and outputs never change (default: %(default)s)",
    )
    parser.add_argument(
        "--repository",
        metavar="DIR",
        default="model_repository",
        help="Triton model repository; made if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest pair in tokens (default: the checkpoint's limit; at fp16 at most what a batch of max_batch_size "
        "rows may have on a GPU)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub (default: its main branch)")
    parser.add_argument(
        "--relevant-label",
        type=int,
        choices=(0, 1),
        help="of a classifier with two labels, the one that stands for relevance: the logit is its own less "
        "the other's (default: 1)",
    )
    parser.add_argument("--force", action="store_true", help="replace another installation")
    late = parser.add_argument_group(
        "late interaction (ColBERT checkpoints, which have an artifact.metadata, need no option)"
    )
    late.add_argument(
        "--late-interaction", action="store_true", help="export the checkpoint's encoder for late interaction"
    )
    late.add_argument(
        "--query-prefix", metavar="TEXT", help='put before every query, such as "query: " (default: none)'
    )
    late.add_argument("--document-prefix", metavar="TEXT", help="put before every document (default: none)")
    late.add_argument(
        "--query-length", type=int, metavar="N", help="longest query in tokens (default: 128; ColBERT's own)"
    )
    late.add_argument(
        "--score-special-tokens", action="store_true", help="also score the vectors of the special tokens around a text"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print the result and the next command."""
    from triton_rerank_build.exporter import export

    manifest = export(
        args.checkpoint,
        repository=args.repository,
        precision=args.precision,
        max_length=args.max_length,
        revision=args.revision or None,  # deployments pass it empty
        force=args.force,
        late_interaction=_late_options(args),
        relevant_label=args.relevant_label,
    )
    if args.json:
        sys.stdout.write(manifest.to_json())
    else:
        print(summary(manifest, args.repository))
    return 0


def _late_options(args: argparse.Namespace) -> "LateOptions | None":
    from triton_rerank_build.late_interaction.settings import LateOptions

    options = LateOptions(
        query_prefix=args.query_prefix or "",
        document_prefix=args.document_prefix or "",
        special_scored=args.score_special_tokens,
        query_length=args.query_length,
    )
    return options if args.late_interaction or options != LateOptions() else None


def _effect(proof: "Parity") -> str:
    return "" if proof.score_change is None else f", {proof.score_change:.1e} of a relevance_score,"


def summary(manifest: "Manifest", repository: str) -> str:
    """The installed files and the next command."""
    from triton_rerank_build.support.progress import format_bytes

    order = f", Kendall's tau {manifest.parity.kendall_tau:.4f}" if manifest.precision == "int8" else ""
    proof = manifest.packed or manifest.parity
    lines = [
        f"{manifest.checkpoint} {manifest.precision}, up to {manifest.max_length} tokens; worst difference "
        f"from PyTorch {proof.worst_difference:.1e}{order}{_effect(proof)} over {proof.num_pairs} rows"
    ]
    if manifest.packed is not None:
        lines.append(
            "  model.onnx takes packed rows, for ONNX Runtime on GPUs; model.padded.onnx is for TensorRT and CPUs "
            f"(worst difference {manifest.parity.worst_difference:.1e} over {manifest.parity.num_pairs} rows)"
        )
    lines += [f"  {repository}/{name}  {format_bytes(entry.bytes)}" for name, entry in manifest.artefacts.items()]
    lines.append(f"next: triton-rerank-build serve --repository {repository}")
    return "\n".join(lines)
