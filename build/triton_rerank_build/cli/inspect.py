"""`triton-rerank-build inspect`."""

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_rerank_build.checkpoints.resolve import Checkpoint

_DESCRIPTION = """\
Say what a checkpoint is, and whether and how `export` would export it. Of a checkpoint on the Hugging Face hub only
small files are downloaded: configuration and tokenizer, not the weights.
"""
_EPILOG = """\
examples:
  triton-rerank-build inspect BAAI/bge-reranker-v2-m3
  triton-rerank-build inspect ./my-reranker
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "inspect",
        help="say what a checkpoint is, and how it would be exported, before its weights are downloaded",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a local folder, or an id on the Hugging Face hub")
    parser.add_argument("--revision", help="branch, tag or commit on the hub (default: its main branch)")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts; an unsupported checkpoint is an error with the reason."""
    from triton_rerank_build.checkpoints.resolve import look_up

    facts = describe(look_up(args.checkpoint, args.revision or None))
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:{width}}  {value}" for name, value in facts.items()))
    return 0


def describe(seen: "Checkpoint") -> dict[str, object]:
    """What is known of a checkpoint without its weights, by name."""
    from triton_rerank_build.checkpoints.families import DECODERS, ENCODERS, FAMILIES
    from triton_rerank_build.checkpoints.prompts import PROMPTS

    facts: dict[str, object] = {"checkpoint": seen.name, "family": seen.family, "longest pair": f"{seen.limit} tokens"}
    if seen.late_interaction:
        return facts | {"network": "encoder of late interaction", "precisions": "fp32, fp16"}
    if seen.family in DECODERS:
        prompt = PROMPTS[seen.family]
        answers = f"{prompt.relevant} against {prompt.irrelevant}" if seen.causal else "a classifier"
        facts |= {"logit": f"{answers}, at the last token", "instruction": prompt.instruction}
    else:
        head = "modules of sentence-transformers" if seen.head else "a classifier"
        two = "" if seen.relevant is None else f", label {seen.relevant} less label {1 - seen.relevant}"
        facts |= {"logit": f"{head}{two}, at the first token"}
    own = "this project's" if seen.family in FAMILIES else "transformers' own forward"
    facts["network"] = f"{own}; on GPUs " + ("packed" if seen.family in ENCODERS else "padded")
    if seen.others_network:
        facts["network"] = f"{own}; on CPUs"
    facts["precisions"] = "fp32" if seen.others_network else "fp32, fp16, int8"
    facts["export"] = f"triton-rerank-build export {seen.name}"
    return facts
