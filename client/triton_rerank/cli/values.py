"""Values of options: checked while the command line is parsed, so that errors name the option."""

from __future__ import annotations

import argparse
import math

from triton_rerank.errors import InvalidRequestError
from triton_rerank.types import Cascade

CASCADE_KEEP = (
    "late interaction orders all documents, and --model scores the best KEEP of them; with a decimal point KEEP is "
    "their share"
)
CASCADE_FIRST = f"another first stage for --cascade: name of an ensemble ({Cascade().first})"
CASCADE_FALLBACK = "let --model score all documents if the first stage of --cascade fails"


def positive(value: str) -> int:
    """An integer, 1 or more."""
    try:
        number = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not an integer") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return number


def share(value: str) -> float:
    """A number from 0 to 1."""
    number = _number(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return number


def depth(value: str) -> int | None:
    """An integer, 1 or more; None for "all"."""
    return None if value == "all" else positive(value)


def limit(value: str) -> float:
    """An integer, 0 or more; infinity for "all"."""
    return math.inf if value == "all" else 0 if value == "0" else positive(value)


def kept(value: str) -> int | float:
    """What a cascade keeps: a number of documents, or with a decimal point their share."""
    if "." not in value:
        return positive(value)
    number = share(value)
    if not number:
        raise argparse.ArgumentTypeError(f"{value} keeps no document")
    return number


def seconds(value: str) -> float:
    """A finite number above 0."""
    number = _number(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a number of seconds above 0")
    return number


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None


def add_cascade_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a cascade, the same for every command that ranks."""
    parser.add_argument("--cascade", type=kept, metavar="KEEP", help=CASCADE_KEEP)
    parser.add_argument("--cascade-first", metavar="MODEL", help=CASCADE_FIRST)
    parser.add_argument("--cascade-fallback", action="store_true", help=CASCADE_FALLBACK)


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
