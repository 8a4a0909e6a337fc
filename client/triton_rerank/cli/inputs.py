"""Input files of `rerank` and `score`: text lines, JSON lines, a JSON array, or CSV."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.lines import Line, decode_lines, is_json_lines, read_lines
from triton_rerank.ranking.validation import MAX_MESSAGE_BYTES

_STDIN = Path("stdin")
_OBJECT_START = re.compile(r'\{\s*("([^"\\]|\\.)*"\s*:|\})')
_ARRAY_START = re.compile(r'\[\s*($|"|\{\s*")|\{\s*$')


@dataclass(frozen=True, slots=True)
class Item:
    """A document or a pair, and its position in the file."""

    value: Any
    where: str
    """FILE:LINE, for errors."""
    line: int | None
    """From 1; None in a JSON array."""

    def error(self, reason: str) -> InvalidRequestError:
        """An error that names file and line."""
        return InvalidRequestError(f"{self.where}: {reason}")


def lines_of(name: str) -> Iterator[Line]:
    """The lines of a file that are not blank; "-" is standard input, which is read as it arrives.

    Raises:
        InvalidRequestError: A line is not UTF-8.
        OSError: The file cannot be opened.
    """
    if name == "-":
        return decode_lines(sys.stdin.buffer, _STDIN)
    return read_lines(Path(name))


def read_documents(name: str) -> list[Item]:
    """The documents of a file: strings, or mappings from JSON or CSV.

    A file named .csv has a header line. A JSON array holds texts or objects. In other files each line is a document: a
    JSON object or a text.

    Raises:
        InvalidRequestError: The file is not UTF-8, or its JSON or CSV is invalid.
        OSError: The file cannot be opened.
    """
    path = Path(name) if name != "-" else _STDIN
    lines = list(lines_of(name))
    if path.suffix.lower() == ".csv":
        return list(_csv_rows(lines))
    if (documents := _json_array(path, lines)) is not None:
        return documents
    return [_item(value, line) for value, line in _values(iter(lines))]


def read_pairs(name: str) -> Iterator[Item]:
    """Yield (query, document) pairs: one per line, query TAB document, or a JSON object with "query" and "document".

    Raises:
        InvalidRequestError: A line is not UTF-8, or not a pair.
        OSError: The file cannot be opened.
    """
    for value, line in _values(lines_of(name)):
        yield _item(_pair(value, line), line)


def _item(value: Any, line: Line) -> Item:  # noqa: ANN401  # a document or a pair
    return Item(value, f"{line.path}:{line.number}", line.number)


def _values(lines: Iterator[Line]) -> Iterator[tuple[str | dict[str, Any], Line]]:
    """Yield each line as a JSON object or, if it is not one, as text.

    A file is JSON lines if its suffix is .jsonl or .json, or if its first line starts a JSON object. Then every line
    must be an object: broken JSON must not be scored as text.
    """
    first = next(lines, None)
    if first is None:
        return
    json_lines = is_json_lines(first.path) or _OBJECT_START.match(first.text) is not None
    for line in chain([first], lines):
        if json_lines:
            yield line.json_object(), line
        else:
            value = _parsed(line.text) if line.text.startswith("{") else None
            yield value if isinstance(value, dict) else line.text, line


def _json_array(path: Path, lines: list[Line]) -> list[Item] | None:
    """The elements of a file that is a JSON array; None if the file is not one.

    Raises:
        InvalidRequestError: The file starts like a JSON value over several lines, but is not an array of documents.
    """
    if not lines or not (lines[0].text.startswith("[") or lines[0].text.strip() == "{"):
        return None
    value = _parsed("\n".join(line.text for line in lines))
    if isinstance(value, list) and all(isinstance(element, (str, dict)) for element in value):
        return [Item(element, f"{path}: element {index}", None) for index, element in enumerate(value)]
    if value is not None and isinstance(value, dict):
        raise lines[0].error("one JSON object over several lines; use one object per line, or a JSON array")
    if value is not None and is_json_lines(path):
        raise lines[0].error("the JSON array has elements that are neither objects nor texts")
    if value is None and _ARRAY_START.match(lines[0].text):
        raise lines[0].error("starts like JSON, but is not valid; use one JSON object per line, or a JSON array")
    return None  # text, such as "[1] a citation"


def _csv_rows(lines: list[Line]) -> Iterator[Item]:
    """The rows of a CSV file with a header, as mappings. Blank lines inside quoted values are lost."""
    csv.field_size_limit(MAX_MESSAGE_BYTES)
    rows = csv.reader((f"{line.text}\n" for line in lines), strict=True)
    header: list[str] | None = None
    while True:
        first = rows.line_num  # lines read so far, so the index of the row's first line
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise lines[min(rows.line_num, len(lines)) - 1].error(f"not CSV: {error}") from None
        if row is None:
            return
        line = lines[first]
        if header is None:
            header = row
        elif len(row) != len(header):
            raise line.error(f"{len(row)} columns, but the header has {len(header)}")
        else:
            yield _item(dict(zip(header, row, strict=True)), line)


def _pair(value: str | dict[str, Any], line: Line) -> tuple[str, str]:
    if isinstance(value, dict):
        if not isinstance(value.get("query"), str) or not isinstance(value.get("document"), str):
            raise line.error('needs "query" and "document", both texts')
        return value["query"], value["document"]
    query, tab, document = value.partition("\t")
    if not tab:
        raise line.error("no tab between query and document")
    return query, document


def _parsed(text: str) -> Any:  # noqa: ANN401  # any JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
