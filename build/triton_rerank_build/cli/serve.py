"""`triton-rerank-build serve`: keep a server up on this machine."""

import argparse
import signal
from pathlib import Path

from triton_rerank_build.errors import ServerStartError

DESCRIPTION = """Start tritonserver on this machine (no Docker, no GPU), on 127.0.0.1, and keep it up until Ctrl-C.

The model repository runs as it is committed: `--runtime openvino` chooses configs/cpu.pbtxt (bf16 where the processor
has units for it), `--runtime onnxruntime` runs the GPU's config.pbtxt on the CPU."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "serve",
        help="start tritonserver on this machine",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument(
        "--runtime", choices=["openvino", "onnxruntime"], default="openvino", help="default: %(default)s"
    )
    parser.add_argument("--http-port", type=int, default=8000, help="default: %(default)s; 0 = a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default: %(default)s; 0 = a free one")
    parser.add_argument("--metrics-port", type=int, default=8002, help="default: %(default)s; 0 = a free one")
    parser.add_argument("--log", type=Path, help="the server's log (default: server.log in the cache folder)")
    parser.add_argument("--start-timeout", type=float, default=300.0, metavar="SECONDS", help="default: %(default).0f")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, then stop in order."""
    from triton_rerank_build.serving.server import EmbeddedServer
    from triton_rerank_build.support.files import cache_folder
    from triton_rerank_build.support.progress import logger

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = EmbeddedServer(
        args.repository,
        runtime=args.runtime,
        grpc_port=args.grpc_port,
        http_port=args.http_port,
        metrics_port=args.metrics_port,
        log=args.log or cache_folder() / "server.log",
        start_timeout_s=args.start_timeout,
    )
    logger.info("starting tritonserver on %s (%s) ...", args.repository, args.runtime)
    try:
        with server:
            print(ready_message(server.grpc_url, server.http_url, server.metrics_url), flush=True)
            logger.info("log: %s   stop: Ctrl-C", server.log_path)
            status = server.wait()
            raise ServerStartError(f"tritonserver ended with status {status}; the end of its log:\n{server.log_tail()}")
    except KeyboardInterrupt:
        logger.info("stopped")
        return 0


def ready_message(grpc_url: str, http_url: str, metrics_url: str) -> str:
    """What a user needs next: addresses, and a call."""
    return f"""ready: gRPC {grpc_url}   HTTP {http_url}   metrics {metrics_url}

    from triton_rerank import RerankClient
    client = RerankClient("{grpc_url}")
    print(client.rerank("how to prevent flu?", ["Wash your hands often.", "Flutes are made of wood."]).results)
"""
