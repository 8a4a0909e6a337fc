"""Lines of data files, plain or gzipped. Errors name the file and the line number."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import naming


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank, without its line ending."""

    path: Path
    number: int
    """From 1; blank lines count."""
    text: str

    def error(self, reason: str) -> InvalidRequestError:
        """An error that names the file and the line."""
        return InvalidRequestError(f"{self.path}:{self.number}: {reason}")

    def json_object(self) -> dict[str, Any]:
        """Parse the line as a JSON object.

        Raises:
            InvalidRequestError: The line is not JSON, or not an object.
        """
        try:
            value = json.loads(self.text)
        except ValueError as error:
            raise self.error(f"not JSON: {error}") from None
        except RecursionError:
            raise self.error("not usable JSON: it is nested too deep") from None
        if not isinstance(value, dict):
            raise self.error("not a JSON object")
        return value

    def field(self, fields: Mapping[str, Any], *names: str) -> str:
        """The text of the first of `names` that `fields` holds. Integers are accepted for ids.

        Raises:
            InvalidRequestError: None of the fields is present, or its value is not text.
        """
        for name in names:
            value = fields.get(name)
            if isinstance(value, str):
                return value
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
        raise self.error(f"needs {' or '.join(map(repr, names))}, a text (its keys: {', '.join(fields) or 'none'})")


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a UTF-8 file that are not blank. The suffix .gz means gzip.

    Raises:
        InvalidRequestError: A line is not UTF-8, or the gzip file is damaged.
        OSError: The file cannot be opened.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        yield from decode_lines(file, path)


def decode_lines(file: Iterable[bytes], path: Path) -> Iterator[Line]:
    """Yield the lines of an open binary file that are not blank. A byte-order mark at the start is skipped.

    Args:
        file: Yields lines with their line endings.
        path: Named in errors.

    Raises:
        InvalidRequestError: A line is not UTF-8, or the gzip file is damaged.
    """
    number = 0
    try:
        with naming(path):
            for number, raw in enumerate(file, start=1):
                if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise InvalidRequestError(f"{path}:1: UTF-16 text; save the file as UTF-8")
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield Line(path, number, text)
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path}:{number}: not UTF-8 text: {error.reason} at byte {error.start}; save the file as UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidRequestError(
            f"{path}:{number + 1}: damaged gzip file: {error}; download or copy it again"
        ) from None


def is_json_lines(path: Path) -> bool:
    """Whether the file name ends in .jsonl or .json, with or without .gz."""
    suffixes = path.suffixes
    return bool({".jsonl", ".json"} & set(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:]))
