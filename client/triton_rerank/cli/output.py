"""How the command line shows things: a table, JSON fields, a progress bar."""

from __future__ import annotations

import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from triton_rerank.types import Document, RerankResponse, RerankResult


def document_fields(result: RerankResult) -> dict[str, Any]:
    """A result as a JSON object."""
    document = result.document
    fields: dict[str, Any] = {
        "rank": result.rank,
        "index": result.index,
        "relevance_score": result.relevance_score,
        "logit": result.logit,
        "num_tokens": result.num_tokens,
        "truncated": result.truncated,
        "document": asdict(document) if isinstance(document, Document) else document,
    }
    if result.chunk is not None:
        fields["chunk"] = asdict(result.chunk)
    return fields


def print_table(response: RerankResponse) -> None:
    """Rank, score and the beginning of each document, no wider than the terminal."""
    room = max(20, shutil.get_terminal_size((100, 24)).columns - 24)
    print(f"{'rank':>4}  {'relevance_score':>15}  document")
    for result in response:
        text = " ".join((result.chunk.text if result.chunk else result.text).split())
        mark = " [truncated]" if result.truncated else ""
        print(f"{result.rank:>4}  {result.relevance_score:>15.4f}  {shorten(text, room - len(mark))}{mark}")


def shorten(text: str, room: int) -> str:
    """`text` in at most `room` terminal columns; CJK characters take two."""
    used = 0
    for place, character in enumerate(text):
        used += columns(character)
        if used > room:
            return text[: max(0, place - 1)] + "…"
    return text


def columns(character: str) -> int:
    """Terminal columns of a character."""
    if unicodedata.combining(character) or not character.isprintable():
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int], None]]:
    """A counter on stderr while it is a terminal: the end of a stream is not known beforehand."""
    shown = sys.stderr.isatty()
    started, done = time.monotonic(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if shown:
            rate = done / max(1e-9, time.monotonic() - started)
            print(f"\r{done:,} {unit}, {rate:,.0f} a second ", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if shown and done:
            print(file=sys.stderr)
