"""Reranked queries on disk, a line each as they are done, so that a broken-off evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.trec import Scores


@dataclass(frozen=True, slots=True)
class Reranked:
    """One query's candidates, scored by the model."""

    query_id: str
    scores: Scores
    """doc_id -> logit."""
    total_s: float
    num_tokens: int
    num_truncated: int


class Journal:
    """A file of JSON lines: the settings first, then one `Reranked` a line.

    Args:
        path: The file; what it holds of the same settings is taken over.
        settings: What the scores depend on.

    Raises:
        InvalidRequestError: The file was written with other settings, or a line in the middle is damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.done: dict[str, Reranked] = {}
        self._path = path
        whole = self._read(dict(settings)) if path.exists() else 0
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(whole)  # a line that a kill has cut
        self._file.seek(whole)
        if not whole:
            self._write({"settings": dict(settings)})

    def append(self, reranked: Reranked) -> None:
        """Keep one more query; it is on disk when this returns."""
        self._write(asdict(reranked))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, fields: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _read(self, settings: dict[str, Any]) -> int:
        """Take over what is there; the number of bytes that are whole lines."""
        whole = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    fields = json.loads(line)
                    if number == 1:
                        self._check(fields["settings"], settings)
                    else:
                        reranked = Reranked(**fields)
                        self.done[reranked.query_id] = reranked
                except (ValueError, TypeError, KeyError) as error:
                    if isinstance(error, InvalidRequestError):
                        raise
                    raise InvalidRequestError(f"{self._path}:{number}: no line of an evaluation; delete it") from None
                whole += len(line)
        return whole

    def _check(self, found: Mapping[str, Any], settings: dict[str, Any]) -> None:
        other = [name for name, value in settings.items() if found.get(name) != value]
        if other:
            shown = ", ".join(f"{name} was {found.get(name)!r}, now {settings[name]!r}" for name in other)
            raise InvalidRequestError(f"{self._path}: holds an evaluation with other settings ({shown}); take another")
