"""The files of a bulk job: Parquet in, cut into blocks of rows, and a Parquet file for each block out.

A block is done when its file is there: files get their names when they are complete and on the disk. docs/bulk.md lists
them.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import naming, require, sync_folder

Table = Any
Schema = Any

SETTINGS_NAME, SUMMARY_NAME, FAILURES_NAME = "_bulk.json", "_summary.json", "_failures"
_KEY = b"triton_rerank"
_BUFFER_BYTES = 1 << 20  # of a column: without it a reader holds whole row groups
_BATCH_ROWS = 16  # pyarrow refuses lists of texts beyond 2 GB in one batch


@dataclass(frozen=True, slots=True)
class InputFile:
    """A Parquet file."""

    path: str
    digest: str
    """Of the footer: position, size and statistics of every column chunk."""
    row_groups: tuple[int, ...]
    """Rows of each."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one row group; the unit that is done or not done."""

    index: int
    path: str
    digest: str
    row_group: int
    start: int
    """First row, in the row group."""
    file_row: int
    """First row, in the file."""
    row: int
    """First row, in the whole input."""
    rows: int


def find_files(path: Path) -> list[Path]:
    """The Parquet files of an input: itself, or those in a folder and its subfolders, by name.

    Names that start with "." or "_" are left out, as Spark and Arrow do.
    """
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in path.rglob("*.parquet")
        if (file.is_file() or file.is_symlink()) and not any(part[0] in "._" for part in file.relative_to(path).parts)
    ]
    if not found:
        raise InvalidRequestError(f"{path}: no *.parquet file in this folder")
    return sorted(found)


def read_footer(path: Path) -> tuple[InputFile, Schema]:
    """A file's description and the schema of its columns."""
    with open_parquet(str(path)) as (parquet, digest):
        metadata = parquet.metadata
        groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        return InputFile(str(path), digest, groups), parquet.schema_arrow


def cut(files: Sequence[InputFile], block_rows: int) -> list[Block]:
    """The blocks of an input, within its row groups; one empty block if it has no rows."""
    blocks: list[Block] = []
    row = 0
    for file in files:
        file_row = 0
        for group, rows in enumerate(file.row_groups):
            for start in range(0, rows, block_rows):
                size = min(block_rows, rows - start)
                blocks.append(Block(len(blocks), file.path, file.digest, group, start, file_row + start, row, size))
                row += size
            file_row += rows
    return blocks or [Block(0, files[0].path, files[0].digest, 0, 0, 0, 0, 0)]


class BlockReader:
    """Reads blocks. Those of a row group that come in ascending order are read in one pass over it."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = list(dict.fromkeys(columns))
        self._at: tuple[str, int, int] | None = None  # file, row group, next row
        self._tables: Iterator[Table] = iter(())
        self._left: Table = None  # read, but not taken

    def read(self, block: Block) -> Table:
        """The rows of a block."""
        pa, at = require("pyarrow"), self._at
        self._at = None
        try:
            if at is None or at[:2] != (block.path, block.row_group) or at[2] > block.start:
                at = (block.path, block.row_group, 0)
                self._tables = self._open(block)
                self._left = next(self._tables)
            self._take(block.start - at[2])
            table = self._take(block.rows)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise
            raise InvalidRequestError(f"{block.path}: row group {block.row_group} cannot be read: {error}") from None
        self._at = (block.path, block.row_group, block.start + block.rows)
        return table

    def _open(self, block: Block) -> Iterator[Table]:
        """Yield a table without rows, then those of the row group."""
        pa = require("pyarrow")
        with open_parquet(block.path) as (parquet, digest):
            if digest != block.digest:
                raise InvalidRequestError(f"{block.path} has changed since the job was started; restore it")
            yield parquet.schema_arrow.empty_table().select(self._columns)
            groups = [block.row_group] if block.rows else []
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=self._columns):
                yield pa.Table.from_batches([batch]).select(self._columns)

    def _take(self, rows: int) -> Table:
        """The next rows of the row group."""
        taken = [self._left.slice(0, rows)]
        self._left = self._left.slice(rows)
        while (rows := rows - taken[-1].num_rows) > 0:
            table = next(self._tables)
            taken.append(table.slice(0, rows))
            self._left = table.slice(rows)
        return require("pyarrow").concat_tables(taken)


@contextmanager
def open_parquet(path: str) -> Iterator[tuple[Any, str]]:
    """An open Parquet file and the digest of its footer."""
    parquet, pa = require("pyarrow.parquet"), require("pyarrow")
    with open(path, "rb") as file:
        try:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 8))
            size = int.from_bytes(file.read(4), "little") + 8
            file.seek(max(0, end - size))
            digest = sha256(file.read(size)).hexdigest()[:32]
            opened = parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequestError(f"{path}: not a Parquet file: {error}") from None
        yield opened, digest


@dataclass(frozen=True, slots=True)
class Counts:
    """What was done: of a block, or of a whole job."""

    rows: int = 0
    """Rows read: those in the output, and the failures."""
    failures: int = 0
    pairs: int = 0
    tokens: int = 0
    truncated: int = 0
    """Documents."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Output:
    """The folder of a job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, index: int) -> Path:
        """The file of a block's ranked rows."""
        return self.folder / f"part-{index:06}.parquet"

    def failures(self, index: int) -> Path:
        """The file of a block's failures."""
        return self.folder / FAILURES_NAME / f"{index:06}.jsonl"

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, or compare them with those of the folder's job."""
        path = self.folder / SETTINGS_NAME
        if not path.exists():
            if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise InvalidRequestError(f"{self.folder} holds no job, and is not empty; choose another OUTPUT")
            _write_json(path, settings)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in settings if found.get(name) != settings[name]]
        except (ValueError, AttributeError):
            raise InvalidRequestError(f"{path}: not the settings of a job; choose another OUTPUT") from None
        if changed:
            shown = ", ".join(f"{name} was {found.get(name)!r}, now {settings[name]!r}" for name in changed)
            raise InvalidRequestError(f"{self.folder} holds a job with other settings ({shown}); choose another OUTPUT")
        for left in self.folder.glob(".*.tmp"):  # of a job that was killed
            left.unlink(missing_ok=True)

    def write(self, index: int, table: Table, counts: Counts, failures: Sequence[Mapping[str, Any]]) -> None:
        """Write the files of a block; those of an earlier attempt are replaced."""
        path = self.failures(index)
        if failures:
            with _complete(path) as temporary:
                temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in failures), "utf-8")
        else:
            path.unlink(missing_ok=True)
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps({"block": index, **asdict(counts)}).encode()}
        with _complete(self.part(index)) as temporary:
            require("pyarrow.parquet").write_table(table.replace_schema_metadata(metadata), temporary)

    def done(self) -> dict[int, Counts]:
        """Block -> its totals, from the parts that are there."""
        found: dict[int, Counts] = {}
        parquet, pa = require("pyarrow.parquet"), require("pyarrow")
        for path in sorted(self.folder.glob("part-*.parquet")):
            try:
                metadata = parquet.read_metadata(path)
                said = json.loads(metadata.metadata[_KEY])
                index, counts = said.pop("block"), Counts(**said)
                complete = path == self.part(index) and metadata.num_rows + counts.failures == counts.rows
                listed = self.failures(index).read_bytes().count(b"\n") if counts.failures else 0
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError):
                complete, listed = False, 0
            if not complete or listed != counts.failures:
                raise InvalidRequestError(f"{path}: not a complete part of this job; delete it")
            found[index] = counts
        return found

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the totals."""
        _write_json(self.folder / SUMMARY_NAME, summary)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with _complete(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A temporary file that gets the name `path` when the block succeeds. Two processes may write the same one."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.parent.parent if path.parent.name == FAILURES_NAME else path.parent
    temporary /= f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
