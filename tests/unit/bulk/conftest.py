"""A server that ranks documents by the number that their text is, and a table of such documents."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.fake_triton import FakeTriton

LISTS = {"candidates": pa.list_(pa.string()), "doc_ids": pa.list_(pa.int64())}
SCHEMA = pa.schema({"query_id": pa.string(), "query": pa.string(), **LISTS})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTriton]:
    with FakeTriton() as running:
        monkeypatch.setenv("TRITON_RERANK_URL", running.url)
        yield running


def numbers(row: int) -> list[int]:
    """The candidates of a row: 1 to 5 different numbers, not in order."""
    return [(7 * row + 3 * index) % 11 for index in range(1 + row % 5)]


@pytest.fixture
def queries(tmp_path):
    """(rows, first row) -> a Parquet file of them, two row groups."""

    def write(rows, first=0, name="queries.parquet"):
        span = range(first, first + rows)
        table = pa.table(
            {
                "query_id": [f"q{row}" for row in span],
                "query": [f"query {row}" for row in span],
                "candidates": [[str(number) for number in numbers(row)] for row in span],
                "doc_ids": [[100 + number for number in numbers(row)] for row in span],
            },
            schema=SCHEMA,
        )
        pq.write_table(table, tmp_path / name, row_group_size=max(1, rows * 2 // 3))
        return tmp_path / name

    return write
