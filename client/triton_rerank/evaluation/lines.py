"""Read lines of data files, plain or gzipped; what is wrong with one is told with its file and number."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank, without its end."""

    path: Path
    number: int
    text: str

    def error(self, reason: str) -> InvalidRequestError:
        """An error that names the file and the line."""
        return InvalidRequestError(f"{self.path}:{self.number}: {reason}")

    def json_object(self) -> dict[str, Any]:
        """The line as a JSON object.

        Raises:
            InvalidRequestError: It is none.
        """
        try:
            value = json.loads(self.text)
        except ValueError as error:
            raise self.error(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise self.error("no JSON object")
        return value

    def field(self, fields: Mapping[str, Any], *names: str) -> str:
        """The first of `names` that `fields` has, which must be text; ids may be numbers.

        Raises:
            InvalidRequestError: There is none, or it is no text.
        """
        for name in names:
            value = fields.get(name)
            if isinstance(value, str):
                return value
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
        raise self.error(f"needs {' or '.join(map(repr, names))}, a text (its keys: {', '.join(fields) or 'none'})")


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file in UTF-8 that are not blank; gzip is known by the suffix .gz.

    Raises:
        InvalidRequestError: A line is not UTF-8, or the gzip file is damaged.
        OSError: The file cannot be opened.
    """
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, start=1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield Line(path, number, text)
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"{path}:{number}: not UTF-8: {error.reason} at byte {error.start}") from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise InvalidRequestError(f"{path}:{number + 1}: damaged gzip file: {error}") from None


def is_json_lines(path: Path) -> bool:
    """Whether the name says JSON lines: .jsonl or .json, with or without .gz."""
    suffixes = path.suffixes
    return bool({".jsonl", ".json"} & set(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:]))
