"""Rank a file of queries with their candidates, behind all interactive calls, and go on after an interruption.

pip install ./client
python examples/bulk.py searches.jsonl ranked.jsonl

A line of searches.jsonl: {"query": "...", "documents": ["...", "..."]}
A line of ranked.jsonl:   {"query": "...", "order": [1, 0], "scores": [0.93, 0.12]}, or {"query": "...", "error": "..."}
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from triton_rerank import InvalidRequestError, RerankClient, RerankError, RerankResponse

BATCH = 64
"""Searches of a batch. After an interruption at most one batch is ranked again."""


def num_finished(path: Path) -> int:
    """Whole lines of an earlier run. A line that was being written when it ended is removed."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return whole.count(b"\n")


def batches(path: Path, start: int) -> Iterator[list[tuple[str, list[str]]]]:
    """The searches from line `start` on, BATCH at a time."""
    with path.open(encoding="utf-8") as lines:
        rest = islice(enumerate(lines, 1), start, None)
        while batch := [parsed(f"{path}:{number}", line) for number, line in islice(rest, BATCH)]:
            yield batch


def parsed(where: str, line: str) -> tuple[str, list[str]]:
    """The query and the documents of a line."""
    try:
        search = json.loads(line)
        return search["query"], search["documents"]
    except (ValueError, TypeError, KeyError) as error:
        sys.exit(f'{where}: not {{"query": "...", "documents": ["..."]}}: {error!r}')


def as_line(search: tuple[str, list[str]], answer: RerankResponse[str] | RerankError) -> str:
    """The line of one search. A search that nobody could rank does not stop the others; a failing server does."""
    fields: dict[str, Any] = {"query": search[0]}
    if isinstance(answer, InvalidRequestError):
        fields["error"] = str(answer)
    elif isinstance(answer, RerankError):
        raise answer
    else:
        fields["order"] = [result.index for result in answer]
        fields["scores"] = [round(result.relevance_score, 4) for result in answer]
    return json.dumps(fields, ensure_ascii=False) + "\n"


def main(source: Path, target: Path) -> None:
    """Rank what is not ranked yet."""
    source.stat()  # an error before `target` is made
    done = num_finished(target)
    with RerankClient(timeout=600) as client, target.open("a", encoding="utf-8") as out:
        for batch in batches(source, done):
            answers = client.rerank_many(batch, concurrency=8, priority=3, return_exceptions=True)
            for search, answer in zip(batch, answers, strict=True):
                out.write(as_line(search, answer))
            out.flush()
            done += len(batch)
            print(f"{done} searches", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} searches.jsonl ranked.jsonl")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, RerankError) as error:
        sys.exit(f"error: {error}; the same command goes on from here")
