"""`triton-rerank-build verify`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_rerank_build.repository.manifest import Manifest


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "verify",
        help="check an installed repository against its manifest",
        description="Check that the files of a model repository, their hashes and the graph's inputs and "
        "outputs are what the manifest says. Exit status 1 and the list of differences otherwise.",
    )
    parser.add_argument("--repository", metavar="DIR", default="model_repository", help="(default: %(default)s)")
    parser.add_argument(
        "--golden",
        action="store_true",
        help="also score the pairs whose logits the authors of BAAI/bge-reranker-v2-m3 published",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON, one for each ensemble")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify, and print what is installed."""
    from triton_rerank_build.late_interaction.repository import verify_late
    from triton_rerank_build.repository.layout import RERANKER
    from triton_rerank_build.repository.verify import verify
    from triton_rerank_build.support.progress import logger

    late = verify_late(args.repository)
    manifests: list[Manifest] = [late] if late else []
    # A repository may hold late interaction only.
    if not late or (Path(args.repository) / RERANKER.manifests[-1]).is_file():
        manifests.insert(0, verify(args.repository))
    for manifest in manifests:
        if args.json:
            sys.stdout.write(manifest.to_json())
        else:
            what = f"{manifest.checkpoint} {manifest.precision}{' for late interaction' if manifest is late else ''}"
            print(f"{args.repository} is intact: {what}, made {manifest.created}")
    if args.golden:
        from triton_rerank_build.repository.verify import verify_published

        scores = verify_published(args.repository)
        worst = max(abs(score.logit - score.published) for score in scores)
        logger.info("PASS: %d published scores, worst difference %.4f", len(scores), worst)
    return 0
