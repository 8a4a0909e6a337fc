"""Options of a cascade, the same for every command that ranks."""

from __future__ import annotations

import argparse

from triton_rerank.cli.values import kept
from triton_rerank.errors import InvalidRequestError
from triton_rerank.types import Cascade

KEEP = (
    "late interaction orders all documents, and --model scores the best KEEP of them; with a decimal point KEEP is "
    "their share"
)
FIRST = f"another first stage for --cascade: name of an ensemble ({Cascade().first})"
FALLBACK = "let --model score all documents if the first stage of --cascade fails"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    parser.add_argument("--cascade", type=kept, metavar="KEEP", help=KEEP)
    parser.add_argument("--cascade-first", metavar="MODEL", help=FIRST)
    parser.add_argument("--cascade-fallback", action="store_true", help=FALLBACK)


def cascade_of(options: argparse.Namespace) -> Cascade | None:
    """The cascade that the options describe; None without --cascade.

    Raises:
        InvalidRequestError: An option needs --cascade, which is not given.
    """
    if options.cascade is not None:
        return Cascade(options.cascade, options.cascade_first or Cascade().first, options.cascade_fallback)
    if options.cascade_first or options.cascade_fallback:
        option = "--cascade-first" if options.cascade_first else "--cascade-fallback"
        raise InvalidRequestError(f"{option} has no effect without --cascade; give both")
    return None
