"""`triton-rerank-build demo`: build, serve and rerank in one command."""

import argparse
from pathlib import Path

DESCRIPTION = """Build the demo checkpoint (a small multilingual cross-encoder), install it into a model repository,
serve it with the real tritonserver on this machine, rerank a few examples through the client, and stop.
Files of an earlier run are reused."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser("demo", help="build, serve and rerank a few examples", description=DESCRIPTION)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument(
        "--runtime", choices=["openvino", "onnxruntime"], default="openvino", help="default: %(default)s"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, serve, rerank, stop."""
    from triton_rerank import RerankClient
    from triton_rerank_build.cli.examples import EXAMPLES
    from triton_rerank_build.exporter import export
    from triton_rerank_build.serving.server import EmbeddedServer
    from triton_rerank_build.support.progress import logger

    export("demo", repository=args.repository)
    logger.info("starting tritonserver (%s) ...", args.runtime)
    with EmbeddedServer(args.repository, runtime=args.runtime) as server, RerankClient(server.grpc_url) as client:
        for example in EXAMPLES:
            print(f"\n{example.title}\nquery: {example.query}")
            print("rank  relevance_score  document")
            for result in client.rerank(example.query, example.documents):
                print(f"{result.rank:>4}  {result.relevance_score:>15.4f}  {result.text}")
    print("\nnext: `triton-rerank-build serve` keeps a server up (`make serve` in a checkout)")
    return 0
