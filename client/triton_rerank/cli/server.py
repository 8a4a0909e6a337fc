"""`triton-rerank info` and `triton-rerank ready`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from triton_rerank.cli.connection import connected
from triton_rerank.cli.values import seconds
from triton_rerank.errors import InvalidRequestError, RerankError

_PAIR = ("ready", "ready")
_PAUSE_S = 0.5


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `info`."""
    parser.add_argument("--json", action="store_true", help="a JSON object for each server, with the build's manifest")


def add_ready_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ready`."""
    parser.add_argument(
        "--wait", type=seconds, metavar="SECONDS", help="repeat until the server answers, for at most SECONDS"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing on success")


def info(options: argparse.Namespace) -> int:
    """Run `info`."""
    urls = options.url or [None]
    for number, url in enumerate(urls):
        with connected(argparse.Namespace(**{**vars(options), "url": url})) as client:
            found = asdict(client.model_info())
        if len(urls) > 1:
            found = {"url": url, **found}
        if options.json:
            print(json.dumps(found, ensure_ascii=False))
            continue
        found.pop("manifest")
        if number:
            print()
        for name, value in found.items():
            print(f"{name:20} {'-' if value is None else value}")
    return 0


def ready(options: argparse.Namespace) -> int:
    """Run `ready`."""
    if options.wait:
        _wait(options)
    else:
        with connected(options) as client:
            client.score([_PAIR])
    if not options.quiet:
        print("ready")
    return 0


def _wait(options: argparse.Namespace) -> None:
    """Score a pair until that succeeds, --wait has passed, or an option is unusable.

    Each attempt has a client of its own, so that no backoff of an earlier connection delays it.
    """
    deadline = time.monotonic() + options.wait
    reported = False
    while True:
        remaining_s = deadline - time.monotonic()
        try:
            with connected(options, timeout=max(0.1, min(options.timeout, remaining_s))) as client:
                client.score([_PAIR])
                return
        except InvalidRequestError:
            raise
        except RerankError as error:
            if deadline - time.monotonic() <= _PAUSE_S:
                raise type(error)(f"not ready after {options.wait:g} s: {error}") from error
            if not reported and sys.stderr.isatty():
                print(f"waiting up to {options.wait:g} s: {error}", file=sys.stderr)
                reported = True
        time.sleep(_PAUSE_S)
