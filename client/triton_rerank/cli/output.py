"""Output of the commands: a table, JSON fields, progress on stderr."""

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


def document_fields(result: RerankResult, line: int | None) -> dict[str, Any]:
    """A result as a JSON object.

    Args:
        result: From the client.
        line: The document's line in the input file, from 1; None if it has none.
    """
    document = result.document
    fields: dict[str, Any] = {
        "rank": result.rank,
        "index": result.index,
        **({} if line is None else {"line": line}),
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
    """Print rank, score and the beginning of each document, cut to the terminal's width."""
    room = max(20, shutil.get_terminal_size((100, 24)).columns - 24)
    print(f"{'rank':>4}  {'relevance_score':>15}  document")
    for result in response:
        text = " ".join((result.chunk.text if result.chunk else result.text).split())
        mark = " [truncated]" if result.truncated else ""
        if result.stage != response.model:  # its score is on another scale
            mark += f" [{result.stage}]"
        print(f"{result.rank:>4}  {result.relevance_score:>15.4f}  {shorten(text, room - len(mark))}{mark}")


def shorten(text: str, room: int) -> str:
    """`text` in at most `room` terminal columns; CJK characters take two."""
    used = 0
    for index, character in enumerate(text):
        used += columns(character)
        if used > room:
            return text[: max(0, index - 1)] + "…"
    return text


def columns(character: str) -> int:
    """Terminal columns of a character."""
    if unicodedata.combining(character) or not character.isprintable():
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int], None]]:
    """A counter on stderr if that is a terminal, for a stream of unknown length."""
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


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Count steps on stderr: often on a terminal, every 30 s in a log. Yields a function of the steps done, 1 if none.

    Args:
        title: What is counted.
        total: Number of steps.
        unit: Plural name of a step.
        done: Steps that were completed before and take no time.
    """
    terminal = sys.stderr.isatty()
    interval_s = 0.1 if terminal else 30.0
    started = shown_at = time.monotonic()
    before = done

    def show(now: float) -> None:
        line = progress_line(title, done, total, unit, (now - started) / (done - before) if done > before else None)
        print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def advance(steps: int = 1) -> None:
        nonlocal done, shown_at
        done += steps
        now = time.monotonic()
        if now - shown_at >= interval_s or (terminal and done == total):
            shown_at = now
            show(now)

    if terminal:
        show(started)
    try:
        yield advance
    finally:
        if terminal:
            print(file=sys.stderr)


def progress_line(title: str, done: int, total: int, unit: str, each_s: float | None) -> str:
    """A line such as "reranking: 37 of 739 queries, 4.1 s each, 48 min left".

    Args:
        title: What is counted.
        done: Completed steps.
        total: All steps.
        unit: Plural name of a step.
        each_s: Mean seconds per step of this run, several in flight included; None before the first.
    """
    line = f"{title}: {done:,} of {total:,} {unit}"
    if each_s is None:
        return line
    each = f"{each_s:.1f} s each" if each_s >= 1 else f"{1 / max(each_s, 1e-9):,.0f} a second"
    return f"{line}, {each}, {_duration((total - done) * each_s)} left" if done < total else f"{line}, {each}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
