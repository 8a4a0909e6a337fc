"""The command `triton-rerank`. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from triton_rerank import __version__
from triton_rerank.cli import bulk, evaluate, gateway, scoring, server, warm
from triton_rerank.cli.connection import connection_options
from triton_rerank.errors import RerankError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 after an error, which is printed in one line; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a failed TLS handshake is told in the one line
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _discard_output()  # the reader has closed the pipe (`| head`)
        return 0
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            print(f"triton-rerank: {interrupt}", file=sys.stderr)
        return 130
    except RerankError as error:
        print(f"triton-rerank: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            _discard_output()
        print(f"triton-rerank: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        return 1


def _discard_output() -> None:
    """Send stdout to /dev/null: Python would report its error again when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-rerank", description="Rerank documents with a cross-encoder served by NVIDIA Triton."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = connection_options()

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, options: argparse.ArgumentParser = common
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[options], help=text, description=text)
        added.set_defaults(run=run)
        return added

    scoring.add_rerank_arguments(command("rerank", scoring.rerank, "Order documents by relevance to a query."))
    scoring.add_score_arguments(
        command("score", scoring.score, "Score pairs, one per line: query TAB document, or JSON lines.")
    )
    server.add_info_arguments(command("info", server.info, "Print what the server reports about its model."))
    server.add_ready_arguments(command("ready", server.ready, "Score one pair; exit status 0 on success, 1 if not."))
    evaluate.add_arguments(command("eval", evaluate.run, evaluate.DESCRIPTION, connection_options(many_models=True)))
    bulk.add_arguments(command("bulk", bulk.run, bulk.DESCRIPTION, connection_options(timeout=600.0)))
    warm.add_arguments(command("warm", warm.run, warm.DESCRIPTION, connection_options()))
    gateway.add_arguments(command("gateway", gateway.run, gateway.DESCRIPTION, connection_options(timeout=30.0)))
    return parser
