"""Rows of a bulk job: their queries and candidates from a table, checked; their ranked ids and scores. No I/O."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar, cast

from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.evaluation.files import require
from triton_rerank.ranking.validation import MAX_DOCUMENTS, kind_of
from triton_rerank.types import RerankResponse, Usage

Id = int | str
BatchT = TypeVar("BatchT")
Arrow = Any  # pyarrow ships no complete types


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that a bulk job reads and adds."""

    query: str = "query"
    candidates: str = "candidates"
    ids: str | None = None
    """Lists of the candidates' ids; None if they are in the candidates, or for indices."""
    id_field: str = "id"
    """The id's field in candidates that have fields."""
    ranked_ids: str = "ranked_ids"
    scores: str = "scores"

    def __post_init__(self) -> None:
        if self.ranked_ids == self.scores:
            raise InvalidRequestError(f"ranked ids and scores go to one column, {self.scores!r}; name two")

    @property
    def read(self) -> list[str]:
        """The columns that are read."""
        return [self.query, self.candidates, *([self.ids] if self.ids else [])]


@dataclass(frozen=True, slots=True)
class Search:
    """A row that can be ranked."""

    query: str
    documents: list[Any]
    ids: list[Id]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no result."""

    column: str
    """Empty if the server failed."""
    reason: str

    def __str__(self) -> str:
        return f"column {self.column}: {self.reason}" if self.column else self.reason


@dataclass(frozen=True, slots=True)
class Ranked:
    """A row's result: ids of its candidates, most relevant first, and a score for each."""

    ids: list[Id]
    scores: list[float]
    usage: Usage


def search_of(columns: Columns, query: Any, candidates: Any, ids: Any = None) -> Search | Failure:  # noqa: ANN401
    """The search of a row with these values."""
    if not isinstance(query, str):
        return Failure(columns.query, _absent(query, "a text"))
    if not query.strip():
        return Failure(columns.query, "is empty")
    documents = _documents(columns.candidates, candidates)
    if isinstance(documents, Failure):
        return documents
    found = _ids_of(columns, documents, ids)
    return found if isinstance(found, Failure) else Search(query, documents, found)


def ranked_of(search: Search, response: RerankResponse[Any], *, raw: bool) -> Ranked:
    """The result of a row; those scored by a cascade's first stage alone are left out: a row has one scale."""
    kept = [result for result in response if result.stage == response.model]
    scores = [result.logit if raw else result.relevance_score for result in kept]
    return Ranked([search.ids[result.index] for result in kept], scores, response.usage)


def failure_of(columns: Columns, error: RerankError) -> Failure:
    """The failure that an error of one row's call stands for, in terms of its columns."""
    message = str(error)
    if not isinstance(error, InvalidRequestError):
        return Failure("", f"{type(error).__name__}: {message}")
    told = re.sub(r"\bdocuments(?=\[\d)", columns.candidates, message)
    return Failure(columns.candidates if told != message or "documents" in message else columns.query, told)


def _documents(column: str, candidates: Any) -> list[Any] | Failure:  # noqa: ANN401  # of any table
    documents = _list(candidates)
    if documents is None:
        return Failure(column, _absent(candidates, "a list"))
    if not documents:
        return Failure(column, "is an empty list")
    if len(documents) > MAX_DOCUMENTS:
        return Failure(column, f"holds {len(documents):,} candidates, the limit is {MAX_DOCUMENTS:,}")
    for index, document in enumerate(documents):
        if not isinstance(document, (str, Mapping)):
            return Failure(column, f"{column}[{index}] {_absent(document, 'a text')}")
    return documents


def _ids_of(columns: Columns, documents: Sequence[Any], ids: Any) -> list[Id] | Failure:  # noqa: ANN401
    """The ids of a row's documents: in a column of their own, or in the documents; else their indices."""
    column, field = columns.ids or columns.candidates, columns.id_field
    found: list[Any] | None = list(range(len(documents)))
    if columns.ids is not None:
        found = _list(ids)
    elif any(isinstance(document, Mapping) and field in document for document in documents):
        found = [document.get(field) if isinstance(document, Mapping) else None for document in documents]
    if found is None:
        return Failure(column, _absent(ids, "a list"))
    if len(found) != len(documents):
        return Failure(column, f"holds {len(found)} ids for {len(documents)} candidates")
    try:
        return _checked(found, column)
    except InvalidRequestError as error:
        return Failure(column, str(error))


def _checked(found: Sequence[Any], column: str) -> list[Id]:
    """Ids, ints or texts, each once."""
    ids: list[Id] = []
    indices: dict[Id, int] = {}
    for index, value in enumerate(found):
        if isinstance(value, str):
            checked: Id = str(value)  # numpy's texts, too
        elif isinstance(value, SupportsIndex) and not isinstance(value, bool):
            checked = value.__index__()
        else:
            raise InvalidRequestError(f"the id of {column}[{index}] {_absent(value, 'an int or a text')}")
        if checked in indices:
            raise InvalidRequestError(f"{column}[{indices[checked]}] and {column}[{index}] have the same id {value!r}")
        indices[checked] = index
        ids.append(checked)
    return ids


def _list(value: Any) -> list[Any] | None:  # noqa: ANN401  # of any table
    """A list; numpy's arrays become lists. None for anything else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "tolist"):
        return None
    found = value.tolist()
    return found if isinstance(found, list) else None


def _absent(value: object, wanted: str) -> str:
    if isinstance(value, Exception):
        return f"cannot be read: {value}"
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas has NaN for null
        return "is null"
    return f"is not {wanted} (got {kind_of(value)})"


def check_columns(found: Sequence[str], columns: Columns, where: str, keep: Sequence[str] = ()) -> None:
    """Refuse a table without the columns to read, or to keep."""
    for name in (*columns.read, *keep):
        if list(found).count(name) != 1:
            shown = ", ".join(map(repr, found))
            raise InvalidRequestError(f"{where} has no column {name!r}, or two of them; it has {shown}")


def id_type(schema: Arrow, columns: Columns) -> Arrow:
    """The Arrow type of a table's ids: int64, uint64 for such ids, or string."""
    pa, types = require("pyarrow"), require("pyarrow.types")
    lists = schema.field(columns.ids or columns.candidates).type
    found = getattr(lists, "value_type", lists)
    if not columns.ids:
        at = found.get_field_index(columns.id_field) if types.is_struct(found) else -1
        found = found.field(at).type if at >= 0 else pa.int64()
    if types.is_dictionary(found):
        found = found.value_type
    if types.is_uint64(found):
        return found
    return pa.int64() if types.is_integer(found) else pa.string()


def searches_of(table: Arrow, columns: Columns) -> Iterator[Search | Failure]:
    """The rows of a table."""
    lists = [map(_value, table.column(name)) for name in columns.read]
    for row in zip(*lists, strict=True):
        yield search_of(columns, *row)


def _value(scalar: Arrow) -> Any:  # noqa: ANN401  # of any table
    """A value as Python's, or the reason why it cannot be: text that is not UTF-8, a date beyond the year 9999."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, NotImplementedError) as error:
        return error


def result_columns(rows: Sequence[Ranked | Failure], ids: Arrow) -> tuple[Arrow, Arrow]:
    """The columns of ranked ids and of scores; null for failures."""
    pa = require("pyarrow")
    ranked = [row if isinstance(row, Ranked) else None for row in rows]
    found = pa.array([row and row.ids for row in ranked], pa.list_(ids))
    return found, pa.array([row and row.scores for row in ranked], pa.list_(pa.float32()))


def read_batch(batch: Any, columns: Columns) -> list[Search | Failure]:  # noqa: ANN401  # checked here
    """The rows of a batch."""
    is_arrow = _is(batch, "pyarrow", "Table")
    if not (is_arrow or isinstance(batch, Mapping) or _is(batch, "pandas", "DataFrame")):
        raise InvalidRequestError(f"the batch is {kind_of(batch)}; pass an Arrow table, a pandas frame or a dict")
    check_columns(batch.column_names if is_arrow else list(batch), columns, "the batch")
    if is_arrow:
        return list(searches_of(batch, columns))
    lists = [list(batch[name]) for name in columns.read]
    return [search_of(columns, *row) for row in zip(*lists, strict=True)]


def with_results(batch: BatchT, columns: Columns, rows: Sequence[Ranked | Failure], error_column: str | None) -> BatchT:
    """A copy of a batch with the columns of results, and with that of the reasons of failures if it has a name."""
    given: Any = batch
    is_arrow = _is(given, "pyarrow", "Table")
    if is_arrow:
        found = dict(
            zip((columns.ranked_ids, columns.scores), result_columns(rows, id_type(given.schema, columns)), strict=True)
        )
    else:
        ranked = [row if isinstance(row, Ranked) else None for row in rows]
        pairs: Any = ([row and row.ids for row in ranked], [row and row.scores for row in ranked])
        found = dict(zip((columns.ranked_ids, columns.scores), map(_objects, pairs), strict=True))
    if error_column is not None:
        reasons = [str(row) if isinstance(row, Failure) else None for row in rows]
        found[error_column] = sys.modules["pyarrow"].array(reasons, "string") if is_arrow else _objects(reasons)
    if not is_arrow:
        return cast("BatchT", given.assign(**found) if _is(given, "pandas", "DataFrame") else {**given, **found})
    for name, values in found.items():
        at = given.schema.get_field_index(name)
        given = given.append_column(name, values) if at < 0 else given.set_column(at, name, values)
    return cast("BatchT", given)


def _objects(values: Sequence[Any]) -> Any:  # noqa: ANN401  # [len(values)] object
    import numpy as np

    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # numpy would spread lists of equal lengths over a second axis
        array[index] = value
    return array


def _is(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class in a library, which is loaded if it is."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))
