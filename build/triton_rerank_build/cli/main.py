"""The command `triton-rerank-build`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from triton_rerank_build import __version__
from triton_rerank_build.cli import demo, engine, export, finetune, inspect, serve, verify
from triton_rerank_build.errors import BuildError

_COMMANDS = (demo, inspect, export, engine, verify, serve, finetune)

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        The exit status: 0; 1 after an error of this package or of the file system; 130 after Ctrl-C. argparse exits
        with 2.
    """
    args = _parser().parse_args(argv)
    _log_to_stderr()
    try:
        status: int = args.run(args)
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-rerank-build",
        description="Export a cross-encoder checkpoint into a Triton model repository, and serve it.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("triton_rerank_build").setLevel(logging.INFO)
    # Our steps report the progress; transformers' advice and tqdm's bars would clutter a log file.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    sys.exit(main())
