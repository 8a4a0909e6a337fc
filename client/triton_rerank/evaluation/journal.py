"""A journal of reranked queries, one JSON line per query, from which an interrupted evaluation resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import lock, naming, sync_folder
from triton_rerank.evaluation.trec import Scores


@dataclass(frozen=True, slots=True)
class Reranked:
    """The scores of one query's candidates."""

    query_id: str
    scores: Scores
    """doc_id -> logit; in a cascade, whose stages have scores of two kinds, the rank below 0."""
    total_s: float
    num_tokens: int
    num_truncated: int
    input_digest: str = ""
    """Digest of the query and of the documents that were scored; empty in journals of release 0.1.0."""
    num_pairs: int = 0
    """Pairs that the last stage of a cascade scored; 0 for all of `scores`."""
    first_s: float = 0.0
    """Seconds of a cascade's first stage; part of `total_s`."""


class Journal:
    """A file of JSON lines: the settings first, then one `Reranked` per line. The file is locked until `close`.

    Args:
        path: The file; entries with the same settings are read into `done`.
        settings: What the scores depend on, apart from the texts.

    Raises:
        InvalidRequestError: The file has other settings, a line before the last is damaged, or another process
            has the file open.
        OSError: The file cannot be written; the error names it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.done: dict[str, Reranked] = {}
        self._path = path
        self._file = path.open("a+b")  # append mode creates the file and never truncates it
        try:
            lock(self._file, path)
            complete = self._read(dict(settings))
            self._file.truncate(complete)  # remove a last line that is incomplete
            if not complete:
                self._write({"settings": dict(settings)})
                sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # closing writes the rest of the buffer
                self._file.close()
            raise

    def append(self, reranked: Reranked) -> None:
        """Add a query; it survives a power loss when this returns."""
        self._write(asdict(reranked))

    def close(self) -> None:
        """Close the file, which releases its lock."""
        with naming(self._path):
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, fields: Mapping[str, Any]) -> None:
        with naming(self._path):
            self._file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self, settings: dict[str, Any]) -> int:
        """Fill `done`; return the number of bytes up to the end of the last complete line."""
        complete = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                fields = json.loads(line)
                if number == 1:
                    self._check(fields["settings"], settings)
                else:
                    reranked = Reranked(**{**fields, "scores": dict(fields["scores"])})
                    self.done[reranked.query_id] = reranked
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(error, InvalidRequestError):
                    raise
                raise InvalidRequestError(
                    f"{self._path}:{number}: not a line of an evaluation; delete the line, or choose another --out"
                ) from None
            complete += len(line)
        return complete

    def _check(self, found: Mapping[str, Any], settings: dict[str, Any]) -> None:
        other = [name for name, value in settings.items() if found.get(name) != value]
        if other:
            shown = ", ".join(f"{name} was {found.get(name)!r}, now {settings[name]!r}" for name in other)
            raise InvalidRequestError(
                f"{self._path}: holds an evaluation with other settings ({shown}); choose another --out"
            )
