"""`triton-rerank bulk`: rank the rows of Parquet files, resumably, in this process or on a Ray cluster."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank.cli.connection import client_settings, connected
from triton_rerank.cli.output import progress
from triton_rerank.cli.scoring import add_ranking_arguments, chosen_texts, in_shell_terms
from triton_rerank.cli.values import cascade_of, limit, positive, seconds
from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.files import output_folder

if TYPE_CHECKING:
    from triton_rerank.bulk.files import Block, Counts, InputFile, Output
    from triton_rerank.bulk.ranker import RankerSettings
    from triton_rerank.bulk.rows import Columns
    from triton_rerank.bulk.work import Job
    from triton_rerank.types import ModelInfo

DESCRIPTION = "Rank the rows of Parquet files, resumably, in this process or on a Ray cluster."

_LASTING = (
    *("block_rows", "query_column", "candidates_column", "ids_column", "id_field", "keep_columns"),
    *("fields", "template", "top_n", "min_relevance_score", "long_documents", "raw", "cascade", "cascade_first"),
)
"""Options that the output depends on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bulk`."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="a Parquet file, or a folder of *.parquet")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder: new, empty, or of the same job")
    _add_table_arguments(parser)
    add_ranking_arguments(parser)
    parser.add_argument("--raw", action="store_true", help="raw logits as scores")
    work = parser.add_argument_group("work")
    work.add_argument("--block-rows", type=positive, default=1000, metavar="N", help="rows in a block (%(default)s)")
    work.add_argument(
        "--max-failures",
        type=limit,
        default=0,
        metavar="N",
        help='rows that may fail, or "all"; they go to OUTPUT/_failures (%(default)s)',
    )
    work.add_argument(
        "--concurrency", type=positive, default=8, metavar="N", help="calls in flight of each worker (%(default)s)"
    )
    work.add_argument(
        "--patience", type=seconds, default=1800.0, metavar="SECONDS", help="without any answer (%(default)g)"
    )
    work.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help='work on a Ray cluster: HOST:PORT, ray://HOST:PORT, "auto", or "local" for a new one',
    )
    work.add_argument("--workers", type=positive, metavar="N", help="processes on the Ray cluster (2)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")


def _add_table_arguments(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group("columns")
    table.add_argument("--query-column", default="query", metavar="NAME", help="texts (%(default)s)")
    table.add_argument(
        "--candidates-column", default="candidates", metavar="NAME", help="lists of texts or structs (%(default)s)"
    )
    table.add_argument(
        "--ids-column", metavar="NAME", help="lists of the candidates' ids (the structs' id, else indices)"
    )
    table.add_argument("--id-field", default="id", metavar="NAME", help="of candidates that are structs (%(default)s)")
    table.add_argument(
        "--keep-columns", type=_names, default=[], metavar="A,B", help="columns that the output has, too"
    )


def run(options: argparse.Namespace) -> int:
    """Run `bulk`."""
    from triton_rerank.bulk.files import Output
    from triton_rerank.bulk.work import Job

    if options.workers and not options.ray_address:
        raise InvalidRequestError("--workers has no effect without --ray-address; give both")
    columns = _columns(options)
    files = _input(options, columns)
    with in_shell_terms((), chosen_texts(options)[1]):
        with connected(options, timeout=min(options.timeout, 60.0)) as client:
            info = client.model_info()
            ready = client.rerank("ready", ["ready"], **_call_options(options, info))
        settings = _ranker_settings(options, info, columns, {ready.model: ready.model_version}).checked()
    job = Job(settings, options.output.resolve(), tuple(options.keep_columns), fail_at_once=not options.max_failures)
    with output_folder(options.output):
        output = Output(options.output.resolve())
        output.begin(_settings(options, files, info) | {"the served version": ready.model_version})
        summary = _work(options, job, output, files)
        output.finish(summary)
    _tell(options, summary)
    return 0


def _columns(options: argparse.Namespace) -> Columns:
    from triton_rerank.bulk.rows import Columns
    from triton_rerank.bulk.work import ROW

    columns = Columns(options.query_column, options.candidates_column, options.ids_column, options.id_field)
    made = [ROW, columns.ranked_ids, columns.scores]
    twice = [name for name in (*options.keep_columns, *made) if [*options.keep_columns, *made].count(name) > 1]
    if twice:
        raise InvalidRequestError(f"OUTPUT would have two columns {twice[0]!r}; leave it out of --keep-columns")
    return columns


def _input(options: argparse.Namespace, columns: Columns) -> list[InputFile]:
    from triton_rerank.bulk.files import find_files, read_footer
    from triton_rerank.bulk.rows import check_columns, id_type

    if options.input.is_dir() and options.output.resolve().is_relative_to(options.input.resolve()):
        raise InvalidRequestError(f"{options.output} is in the folder of the input; choose another OUTPUT")
    files, first = [], None
    for path in find_files(options.input.resolve()):
        file, schema = read_footer(path)
        check_columns(schema.names, columns, str(path), options.keep_columns)
        types = [id_type(schema, columns), *(schema.field(name).type for name in options.keep_columns)]
        if first is not None and types != first:
            raise InvalidRequestError(f"{path}: the ids or kept columns have other types than in {files[0].path}")
        first = types
        files.append(file)
    return files


def _call_options(options: argparse.Namespace, info: ModelInfo) -> dict[str, Any]:
    """Options of each call."""
    return {
        "top_n": options.top_n,
        "min_relevance_score": options.min_relevance_score,
        "max_length": options.max_length,
        "long_documents": options.long_documents,
        "text_from": chosen_texts(options)[0],
        "priority": options.priority or info.priority_levels,
        "cascade": cascade_of(options),
    }


def _ranker_settings(
    options: argparse.Namespace, info: ModelInfo, columns: Columns, versions: dict[str, str]
) -> RankerSettings:
    from triton_rerank.bulk.ranker import RankerSettings

    client, calls = client_settings(options), _call_options(options, info)
    return RankerSettings(client, calls, columns, options.raw, options.concurrency, options.patience, versions)


def _settings(options: argparse.Namespace, files: Sequence[InputFile], info: ModelInfo) -> dict[str, Any]:
    """What the output depends on, by the names of the command line. The same input may have moved."""
    from triton_rerank.evaluation.report import model_fields

    rows = sum(sum(file.row_groups) for file in files)
    digest = sha256("".join(file.digest for file in files).encode()).hexdigest()[:16]
    return {
        "INPUT": f"{len(files)} files with {rows} rows, {digest}",
        **{"--" + name.replace("_", "-"): getattr(options, name) for name in _LASTING},
        "--max-length": options.max_length or info.default_max_length,
        "the served model": model_fields(info),
    }


def _work(options: argparse.Namespace, job: Job, output: Output, files: Sequence[InputFile]) -> dict[str, Any]:
    """Do what is not done yet, and check that every row of the input is in the output or among the failures."""
    from triton_rerank.bulk.files import Counts, cut

    blocks = cut(files, options.block_rows)
    before = _done(output, blocks)
    waiting = [block for block in blocks if block.index not in before]
    earlier, new, num_done = sum(before.values(), Counts()), Counts(), len(before)
    _check_failures(options, earlier)
    rows, start = sum(block.rows for block in blocks), time.monotonic()
    try:
        with closing(_engine(options, job, waiting)) as engine, progress("ranking", rows, "rows", earlier.rows) as step:
            for counts in engine:
                new += counts
                num_done += 1
                step(counts.rows)
                _check_failures(options, earlier + new)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted after {num_done:,} of {len(blocks):,} blocks; the same command goes on"
        ) from None
    took_s = time.monotonic() - start
    found = _done(output, blocks)
    if missing := [block.index for block in blocks if block.index not in found]:
        raise InvalidRequestError(f"{output.part(missing[0])} is missing; the same command makes it again")
    run = {"run_rows": new.rows, "run_pairs": new.pairs, "run_s": round(took_s, 3)}
    return {**asdict(sum(found.values(), Counts())), "parts": len(blocks), **run, "pairs_per_s": new.pairs / took_s}


def _done(output: Output, blocks: Sequence[Block]) -> dict[int, Counts]:
    done = output.done()
    for index, counts in done.items():
        if index >= len(blocks) or counts.rows != blocks[index].rows:
            raise InvalidRequestError(f"{output.part(index)}: not a part of this job; delete it")
    return done


def _engine(options: argparse.Namespace, job: Job, blocks: Sequence[Block]) -> Generator[Counts, None, None]:
    from triton_rerank.bulk.work import in_this_process, on_ray

    if options.ray_address and blocks:
        return on_ray(job, blocks, address=options.ray_address, workers=options.workers or 2)
    return in_this_process(job, blocks)


def _check_failures(options: argparse.Namespace, counts: Counts) -> None:
    if counts.failures > options.max_failures:
        raise InvalidRequestError(
            f"{counts.failures:,} rows failed, --max-failures is {options.max_failures:,}; the reasons are in "
            f"{options.output / '_failures'}. The same command with a larger --max-failures goes on"
        )


def _tell(options: argparse.Namespace, summary: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(summary))
        return
    summary["ranked"] = summary["rows"] - summary["failures"]
    print(
        "{rows:,} rows: {ranked:,} ranked, {failures:,} failed".format(**summary)
        + " (see _failures)" * bool(summary["failures"])
    )
    print("{pairs:,} pairs, {tokens:,} tokens, {truncated:,} documents truncated".format(**summary))
    print("this run: {run_rows:,} rows in {run_s:,.1f} s, {pairs_per_s:,.1f} pairs/s".format(**summary))
    print(f'wrote {summary["parts"]:,} parts; read them with pyarrow.parquet.read_table("{options.output}")')


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]
