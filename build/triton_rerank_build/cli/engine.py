"""`triton-rerank-build engine`."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_rerank_build.repository.manifest import Manifest

_DESCRIPTION = """\
Build a TensorRT plan from the installed ONNX graph with NVIDIA's trtexec, on the GPU that will serve it: one
optimization profile for each that cross_encoder/configs/tensorrt.pbtxt names, over the tokenizer's padded lengths and
up to max_batch_size pairs. The plan has the types of the graph (fp16, with LayerNorm, softmax and classifier in fp32)
and is installed only if its logits agree with the graph's on full batches of every profile.
"""
_EPILOG = """\
examples:
  triton-rerank-build engine                  where trtexec is on PATH: build, compare, install
  triton-rerank-build engine --dry-run        print the script, write nothing

where trtexec is in another container, as with docker-compose.yml:
  triton-rerank-build engine --prepare        write cross_encoder/1/engine with graph, rows and build.sh
  bash model_repository/cross_encoder/1/engine/build.sh       in NVIDIA's container
  triton-rerank-build engine --install        compare, and install model.plan
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "engine",
        help="build a TensorRT plan from the ONNX graph, compare the two, install it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repository",
        metavar="DIR",
        default="model_repository",
        help="Triton model repository with an exported graph (default: %(default)s)",
    )
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--dry-run", action="store_true", help="print the script and write nothing")
    step.add_argument("--prepare", action="store_true", help="write the script for a container, and end")
    step.add_argument("--install", action="store_true", help="compare what that script computed, and install the plan")
    parser.add_argument(
        "--timing-cache", metavar="FILE", help="timings that later builds reuse (default: in the cache folder)"
    )
    parser.add_argument("--force", action="store_true", help="build although the same plan is installed")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the step that an option names, or all steps."""
    from triton_rerank_build.tensorrt.install import build_engine, install
    from triton_rerank_build.tensorrt.prepare import engine_script, prepare

    if args.dry_run:
        sys.stdout.write(engine_script(args.repository, timing_cache=args.timing_cache))
        return 0
    if args.prepare:
        script = prepare(args.repository, timing_cache=args.timing_cache, force=args.force)
        if script is not None:
            print(script)
        return 0
    if args.install:
        manifest = install(args.repository)
    else:
        manifest = build_engine(args.repository, timing_cache=args.timing_cache, force=args.force)
    if args.json:
        sys.stdout.write(manifest.to_json())
    else:
        print(summary(manifest, args.repository))
    return 0


def summary(manifest: "Manifest", repository: str) -> str:
    """The installed plan and the next command."""
    from triton_rerank_build.contract import PLAN
    from triton_rerank_build.support.progress import format_bytes

    size, engine = manifest.artefacts[PLAN.as_posix()].bytes, manifest.engine
    if engine is None:
        raise ValueError("the manifest has no plan")
    return "\n".join(
        [
            f"{manifest.checkpoint} {manifest.precision} for {engine.gpu}, TensorRT {engine.tensorrt}; worst "
            f"difference from the graph {engine.worst_difference:.1e} over {engine.num_pairs} pairs",
            f"  {repository}/{PLAN}  {format_bytes(size)}",
            *(f"  profile {index}: {shapes}" for index, shapes in enumerate(engine.profiles)),
            f"next: tritonserver --model-repository={repository} --model-config-name=tensorrt",
        ]
    )
