"""The work on blocks, in this process or in those of a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triton_rerank.bulk.files import Block, BlockReader, Counts, Output
from triton_rerank.bulk.ranker import Ranker, RankerSettings
from triton_rerank.bulk.rows import Failure, Ranked, id_type, result_columns, searches_of
from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.evaluation.files import require

ROW = "row"
"""Column of the output: the row's number in the whole input, from 0."""


@dataclass(frozen=True)
class Job:
    """What another process makes an equal `BlockWorker` of."""

    ranker: RankerSettings
    output: Path
    keep: tuple[str, ...] = ()
    """Columns of the input that the output has, too."""
    fail_at_once: bool = True
    """Whether a row that cannot be ranked ends the job."""


class BlockWorker:
    """Does blocks, with one client for all of them."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._columns = job.ranker.columns
        self._reader = BlockReader([*self._columns.read, *job.keep])
        self._ranker = Ranker(job.ranker)
        self._output = Output(job.output)

    def __call__(self, block: Block) -> Counts:
        """Do a block; its files are complete when this returns."""
        pa, table = require("pyarrow"), self._reader.read(block)
        failures: list[dict[str, Any]] = []

        def failed(index: int, failure: Failure) -> None:
            row = block.file_row + index
            failure = Failure(failure.column, failure.reason.replace("text_from", "--fields or --template"))
            if self._job.fail_at_once:
                raise InvalidRequestError(f"{block.path}: row {row}, {failure}")
            place = {"row": block.row + index, "file": block.path, "file_row": row}
            failures.append({**place, "column": failure.column or None, "reason": failure.reason})

        outcomes = self._ranker.rank(list(searches_of(table, self._columns)), failed)
        ids, scores = result_columns(outcomes, id_type(table.schema, self._columns))
        numbers = pa.array(range(block.row, block.row + block.rows), pa.int64())
        kept = [table.column(name) for name in self._job.keep]
        names = [ROW, *self._job.keep, self._columns.ranked_ids, self._columns.scores]
        ranked = [row for row in outcomes if isinstance(row, Ranked)]
        written = pa.table([numbers, *kept, ids, scores], names=names)
        written = written.filter(pa.array([isinstance(row, Ranked) for row in outcomes], pa.bool_()))
        counts = Counts(
            rows=block.rows,
            failures=block.rows - len(ranked),
            pairs=sum(row.usage.num_pairs for row in ranked),
            tokens=sum(row.usage.num_tokens for row in ranked),
            truncated=sum(row.usage.num_truncated for row in ranked),
        )
        self._output.write(block.index, written, counts, sorted(failures, key=lambda line: line["row"]))
        return counts

    def close(self) -> None:
        """Close the client."""
        self._ranker.close()


_MOST_TASKS = 10_000
"""Of Ray Data: each costs its driver milliseconds and memory."""

_CONNECT_S = 10.0


def in_this_process(job: Job, blocks: Sequence[Block]) -> Generator[Counts, None, None]:
    """Do blocks one after the other, and yield the totals of each."""
    worker = BlockWorker(job)
    try:
        for block in blocks:
            yield worker(block)
    finally:
        worker.close()


class RayWorker:
    """A `BlockWorker` of Ray's, whose errors are values: Ray would print tracebacks."""

    def __init__(self, job: Job) -> None:
        self._worker = BlockWorker(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a block."""
        try:
            return {"error": "", **asdict(self._worker(Block(**row)))}
        except (RerankError, OSError) as error:
            return {"error": str(error), **asdict(Counts())}


def on_ray(job: Job, blocks: Sequence[Block], *, address: str, workers: int) -> Generator[Counts, None, None]:
    """Do blocks on the Ray cluster at an address, or a new "local" one, and yield the totals of each, in any order."""
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray, data = require("ray"), require("ray.data")
    settings = {"num_cpus": max(workers, os.cpu_count() or 1)} if address == "local" else {}
    try:
        ray.init(address, include_dashboard=False if settings else None, logging_level=logging.ERROR, **settings)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        tasks = min(len(blocks), _MOST_TASKS)
        rows = data.from_items([asdict(block) for block in blocks], override_num_blocks=tasks)
        pool = data.ActorPoolStrategy(size=min(workers, tasks))
        done = rows.map(RayWorker, fn_constructor_args=(job,), compute=pool)
        for row in done.iter_rows():
            if error := row.pop("error"):
                raise RerankError(error)
            yield Counts(**row)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        if isinstance(error, RerankError):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise RerankError(f"Ray at {address}: {said}; see also RAY_AUTH_TOKEN, and the versions of Ray") from error
    finally:
        with suppress(Exception):
            ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse an address where nothing listens: Ray tries one for more than ten minutes."""
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^:/]+|\[[^]]+\]):(?P<port>\d{1,5})", address)
    if found is None:
        if address not in ("auto", "local"):
            raise InvalidRequestError(
                f'Ray\'s address is {address!r}; pass HOST:PORT, ray://HOST:PORT, "auto" or "local"'
            )
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise RerankError(f"Ray at {address}: {error}; check --ray-address: the head node's port is 6379") from None
