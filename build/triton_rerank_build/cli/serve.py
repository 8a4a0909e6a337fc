"""`triton-rerank-build serve`: keep a server up on this machine."""

import argparse
import ipaddress
import signal
from pathlib import Path

from triton_rerank_build.errors import ServerStartError

DESCRIPTION = """Start tritonserver on this machine (no Docker, no GPU) and keep it up until Ctrl-C.

`--runtime openvino` chooses configs/cpu.pbtxt (bf16 where the processor has units for it), `--runtime onnxruntime` runs
the GPU's config.pbtxt on the CPU. Before the start, the installed files are compared with the manifest: the size of
each, and the hash of those up to 32 MB; `verify` hashes all of them.

The server is restarted if tritonserver or the Python process of a model ends. After five restarts within five minutes
the command ends with the reason."""


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
    parser.add_argument(
        "--model", help="load this ensemble only, reranker or late_interaction (default: every installed one)"
    )
    parser.add_argument("--http-port", type=int, default=8000, help="default: %(default)s; 0 = a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default: %(default)s; 0 = a free one")
    parser.add_argument("--metrics-port", type=int, default=8002, help="default: %(default)s; 0 = a free one")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="IPv4 address for gRPC; 0.0.0.0 = every network (default: %(default)s)",
    )
    parser.add_argument(
        "--http-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="IPv4 address for HTTP; separate from --host, because a small HTTP request can end Triton 2.51 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="IPv4 address for metrics (default: %(default)s)"
    )
    parser.add_argument("--log", type=Path, help="the server's log (default: server-GRPC_PORT.log in the cache folder)")
    parser.add_argument("--start-timeout", type=float, default=300.0, metavar="SECONDS", help="default: %(default).0f")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, then stop in order."""
    from triton_rerank_build.serving.listeners import Listener, with_free_ports
    from triton_rerank_build.serving.server import EmbeddedServer
    from triton_rerank_build.support.files import cache_folder
    from triton_rerank_build.support.progress import logger

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Chosen here, because the log is named after the port.
    (grpc,) = with_free_ports([Listener("grpc", args.host, args.grpc_port)])
    server = EmbeddedServer(
        args.repository,
        runtime=args.runtime,
        model=args.model,
        grpc_port=grpc.port,
        http_port=args.http_port,
        metrics_port=args.metrics_port,
        host=args.host,
        http_host=args.http_host,
        metrics_host=args.metrics_host,
        log=args.log or cache_folder() / f"server-{grpc.port}.log",
        start_timeout_s=args.start_timeout,
    )
    for host, service in ((args.host, "gRPC"), (args.http_host, "HTTP"), (args.metrics_host, "metrics")):
        if not _is_loopback(host):
            logger.warning(
                "%s on %s: Triton has no authentication, and this release has known vulnerabilities (SECURITY.md)",
                *(service, host),
            )
    logger.info("starting tritonserver on %s (%s) ...", args.repository, args.runtime)
    try:
        with server:
            print(ready_message(server.grpc_url, server.http_url, server.metrics_url), flush=True)
            logger.info("models: %s   log: %s   stop: Ctrl-C", ", ".join(server.models), server.log_path)
            server.wait()
            raise ServerStartError(
                f"{server.reason or 'the supervisor ended'}; the end of the log:\n{server.log_tail()}"
            )
    except KeyboardInterrupt:
        logger.info("stopped")
        return 0


def ready_message(grpc_url: str, http_url: str, metrics_url: str) -> str:
    """The server's addresses, and an example call."""
    return f"""ready: gRPC {grpc_url}   HTTP {http_url}   metrics {metrics_url}

    from triton_rerank import RerankClient
    client = RerankClient("{grpc_url}")
    print(client.rerank("how to prevent flu?", ["Wash your hands often.", "Flutes are made of wood."]).results)
"""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
