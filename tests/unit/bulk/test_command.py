"""`triton-rerank bulk`: what it writes, what it refuses, and how it goes on after an interruption."""

import json
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support import CLIENT_COMMAND
from support.fake_triton import FakeTriton, hang
from support.monitors import wait_until
from triton_rerank.bulk.files import BlockReader, cut, read_footer
from triton_rerank.cli.main import main

from .conftest import numbers


@pytest.fixture
def bulk(server, tmp_path, capsys):
    """Run the command on a file; its exit status, and what it wrote to stdout and stderr."""

    def run(source, *options, out="out"):
        status = main(["bulk", str(source), str(tmp_path / out), *map(str, options)])
        return status, *capsys.readouterr()

    return run


def expected(rows, ids=lambda row: range(len(numbers(row)))):
    """Row -> the ids of its candidates, the largest number first."""
    return {
        row: [name for _, name in sorted(zip(numbers(row), ids(row), strict=True), reverse=True)] for row in range(rows)
    }


def ranked(folder):
    table = pq.read_table(folder)
    rows = table.column("row").to_pylist()
    assert rows == sorted(rows)
    return dict(zip(rows, table.column("ranked_ids").to_pylist(), strict=True))


def parts(folder):
    return sorted(path.name for path in folder.glob("part-*"))


def test_every_row_is_ranked_once_and_its_columns_are_kept(bulk, queries, tmp_path):
    status, out, _ = bulk(queries(25), "--block-rows", 10, "--keep-columns", "query_id,query", "--raw")
    assert status == 0
    assert ranked(tmp_path / "out") == expected(25)
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["row", "query_id", "query", "ranked_ids", "scores"]
    assert table.column("query_id").to_pylist() == [f"q{row}" for row in range(25)]
    assert table.column("scores").to_pylist() == [sorted(map(float, numbers(row)), reverse=True) for row in range(25)]
    # Row groups of 16 and 9 rows: a block ends with its row group.
    sizes = [pq.read_metadata(tmp_path / "out" / name).num_rows for name in parts(tmp_path / "out")]
    assert sizes == [10, 6, 9]
    assert out.splitlines()[:2] == [
        "25 rows: 25 ranked, 0 failed",
        f"75 pairs, {sum(len(str(number)) for row in range(25) for number in numbers(row))} tokens, "
        "0 documents truncated",
    ]
    assert out.splitlines()[-1].startswith("wrote 3 parts; read them with pyarrow.parquet.read_table(")
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["pairs"] == 75


def test_a_folder_is_read_in_the_order_of_its_files(bulk, queries, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    queries(5, 10, "in/b.parquet")
    queries(10, 0, "in/a.parquet")
    queries(3, 15, "in/deep/c.parquet")
    (tmp_path / "in" / "_notes.parquet").write_text("left out")
    assert bulk(tmp_path / "in", "--ids-column", "doc_ids", "--top-n", 2)[0] == 0
    wanted = expected(18, lambda row: [100 + number for number in numbers(row)])
    assert ranked(tmp_path / "out") == {row: ids[:2] for row, ids in wanted.items()}


def test_an_input_without_rows_makes_an_output_without_rows(bulk, queries, tmp_path):
    status, out, _ = bulk(queries(0), "--json")
    assert status == 0
    assert json.loads(out)["rows"] == 0
    assert pq.read_table(tmp_path / "out").num_rows == 0


def test_the_same_command_goes_on_and_then_does_nothing(bulk, queries, server, tmp_path):
    source = queries(30)
    assert bulk(source, "--block-rows", 10)[0] == 0
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in parts(tmp_path / "out")}
    (tmp_path / "out" / "part-000001.parquet").unlink()
    asked = len(server.requests)
    moved = source.rename(tmp_path / "moved.parquet")
    status, out, _ = bulk(moved, "--block-rows", 10, "--concurrency", 2)
    assert status == 0
    assert "this run: 10 rows in" in out
    assert len(server.requests) - asked == 10 + 4  # rows; the model's description and a pair, here and in the worker
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in parts(tmp_path / "out")}
    assert {name for name in after if after[name] != before[name]} == {"part-000001.parquet"}
    assert ranked(tmp_path / "out") == expected(30)
    assert "this run: 0 rows in" in bulk(moved, "--block-rows", 10)[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--top-n", "3"], "--top-n was None, now 3"),
        (["--block-rows", "7"], "--block-rows was 1000, now 7"),
        (["--raw"], "--raw was False, now True"),
        ([], "INPUT was '1 files with 4 rows, "),
        (None, "the served model was "),
    ],
)
def test_another_job_is_refused_by_name(bulk, queries, server, tmp_path, change, reason):
    assert bulk(queries(4))[0] == 0
    if change is None:
        server.about["checkpoint"] = "another"
    source = queries(4) if change or change is None else queries(4, 1)
    status, _, err = bulk(source, *(change or []))
    assert status == 1
    assert reason in err
    assert err.count(" was ") == 1
    assert "choose another OUTPUT" in err
    assert ranked(tmp_path / "out") == expected(4)


def bad_rows(tmp_path):
    """A file whose rows 1, 2 and 5 cannot be ranked."""
    rows = [{"query": f"query {row}", "candidates": ["1", "2"], "ids": ["a", "b"]} for row in range(6)]
    rows[1]["query"] = None
    rows[2]["candidates"] = ["1", None]
    rows[5]["ids"] = ["a", "a"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet", row_group_size=4)
    return tmp_path / "bad.parquet"


def test_the_first_bad_row_ends_the_job(bulk, tmp_path):
    status, _, err = bulk(bad_rows(tmp_path), "--ids-column", "ids", "--block-rows", 1)
    assert status == 1
    assert err.endswith(f"triton-rerank: {tmp_path}/bad.parquet: row 1, column query: is null\n")
    assert parts(tmp_path / "out") == ["part-000000.parquet"]


def test_bad_rows_go_to_failures_and_no_row_is_lost(bulk, tmp_path):
    source, options = bad_rows(tmp_path), ("--ids-column", "ids", "--block-rows", 3)
    status, _, err = bulk(source, *options, "--max-failures", 1)
    assert status == 1
    assert "2 rows failed, --max-failures is 1; the reasons are in" in err
    status, out, _ = bulk(source, *options, "--max-failures", "all")
    assert status == 0
    assert out.startswith("6 rows: 3 ranked, 3 failed (see _failures)\n")
    assert ranked(tmp_path / "out") == {row: ["b", "a"] for row in (0, 3, 4)}
    files = sorted((tmp_path / "out" / "_failures").iterdir())
    told = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [(line["row"], line["file_row"], line["column"], line["reason"]) for line in told] == [
        (1, 1, "query", "is null"),
        (2, 2, "candidates", "candidates[1] is null"),
        (5, 5, "ids", "ids[0] and ids[1] have the same id 'a'"),
    ]
    assert {line["file"] for line in told} == {str(source)}


def test_values_that_are_not_texts_are_failures_and_large_ids_are_kept(bulk, tmp_path):
    damaged = pa.array([b"\xff", b"ok", b"ok"], pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], pa.array([b"1", b"\xfe", b"1"], pa.binary()).view(pa.string()))
    ids = pa.array([[2**64 - 1], [1], [2**64 - 2]], pa.list_(pa.uint64()))
    pq.write_table(pa.table({"query": damaged, "candidates": lists, "ids": ids}), tmp_path / "x.parquet")
    assert bulk(tmp_path / "x.parquet", "--ids-column", "ids", "--max-failures", "all")[0] == 0
    assert ranked(tmp_path / "out") == {2: [2**64 - 2]}
    lines = (tmp_path / "out" / "_failures" / "000000.jsonl").read_text().splitlines()
    told = [(json.loads(line)["column"], json.loads(line)["reason"]) for line in lines]
    assert [column for column, _ in told] == ["query", "candidates"]
    assert all(reason.startswith("cannot be read: 'utf-8' codec can't decode byte 0xf") for _, reason in told)


def test_another_version_of_the_model_ends_the_job(bulk, queries, server, tmp_path):
    def replaced(request, context):
        server.version = "2"

    source = queries(30)
    server.faults.extend([lambda request, context: None] * 16 + [replaced])
    status, _, err = bulk(source, "--block-rows", 10, "--concurrency", 1)
    assert status == 1
    assert "reranker: version 1 scored the queries before, version 2 this one" in err
    assert parts(tmp_path / "out") == ["part-000000.parquet"]
    assert "the served version was '1', now '2'" in bulk(source, "--block-rows", 10)[2]
    server.version = "1"
    assert bulk(source, "--block-rows", 10)[0] == 0
    assert ranked(tmp_path / "out") == expected(30)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--query-column", "q"],
            "queries.parquet has no column 'q', or two of them; it has 'query_id', 'query', 'candidates', 'doc_ids'",
        ),
        (["--keep-columns", "x"], "has no column 'x'"),
        (["--candidates-column", "query"], "row 0, column query: is not a list (got str)"),
        (["--query-column", "doc_ids"], "row 0, column doc_ids: is not a text (got list)"),
        (["--candidates-column", "doc_ids"], "row 0, column doc_ids: doc_ids[0] is not a text (got int)"),
        (["--ids-column", "query"], "row 0, column query: is not a list (got str)"),
        (["--keep-columns", "query,query"], "OUTPUT would have two columns 'query'"),
        (["--workers", "2"], "--workers has no effect without --ray-address"),
        (["--priority", "9"], "--priority is 9; pass 1 (first) to 3"),
        (["--template", "{"], "--template is not a template"),
        (["--model", "other"], "unknown model: 'other'"),
        (["--ray-address", "nowhere"], "Ray's address is 'nowhere'; pass HOST:PORT"),
        (["--ray-address", "127.0.0.1:1"], "Ray at 127.0.0.1:1: [Errno 111] Connection refused; check --ray-address"),
    ],
)
def test_unusable_options_are_told_before_any_work(bulk, queries, tmp_path, options, reason):
    status, _, err = bulk(queries(3), *options)
    assert status == 1
    assert reason in err
    assert not parts(tmp_path / "out")


def test_unusable_files_are_told(bulk, queries, tmp_path):
    source = queries(3)
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    footer = bytearray(source.read_bytes())
    footer[-60:-10] = bytes(50)
    (tmp_path / "footer.parquet").write_bytes(footer)
    for name in ("text.parquet", "footer.parquet"):
        assert f"{tmp_path}/{name}: not a Parquet file: " in bulk(tmp_path / name)[2]
    assert f"{tmp_path}/none.parquet: No such file" in bulk(tmp_path / "none.parquet")[2]
    assert "no *.parquet file in this folder" in bulk(tmp_path / "full")[2]
    assert "full holds no job, and is not empty" in bulk(source, out="full")[2]
    assert "out is in the folder of the input" in bulk(tmp_path)[2]
    assert f"{source}: File exists" in bulk(source, out="queries.parquet")[2]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "lost.parquet").symlink_to("nowhere")
    assert f"{tmp_path}/links/lost.parquet: No such file" in bulk(tmp_path / "links", out="new")[2]
    pq.write_table(pa.table({"query": ["x"], "candidates": [[{"title": "1"}]]}), tmp_path / "titles.parquet")
    told = bulk(tmp_path / "titles.parquet", out="new")[2]
    assert "has no \"text\" (its keys: 'title'); add it, or say with --fields or --template" in told


def test_damaged_parts_are_told(bulk, queries, tmp_path):
    source, part = queries(3), tmp_path / "out" / "part-000000.parquet"
    assert bulk(source)[0] == 0
    part.write_bytes(part.read_bytes()[:-4])
    assert f"{part}: not a complete part of this job" in bulk(source)[2]
    pq.write_table(pa.table({"row": [1]}), part)
    assert "delete it" in bulk(source)[2]
    part.unlink()
    assert bulk(source)[0] == 0


def test_types_that_differ_between_files_are_told(bulk, queries, tmp_path):
    (tmp_path / "in").mkdir()
    queries(3, 0, "in/a.parquet")
    table = pq.read_table(tmp_path / "in" / "a.parquet")
    others = table.set_column(3, "doc_ids", pa.array([["x"]] * 3))
    pq.write_table(others, tmp_path / "in" / "b.parquet")
    err = bulk(tmp_path / "in", "--ids-column", "doc_ids")[2]
    assert f"{tmp_path}/in/b.parquet: the ids or kept columns have other types than in {tmp_path}/in/a.parquet" in err


def start(source, out, *options):
    """The command in a process of its own."""
    command = [*CLIENT_COMMAND, "bulk", str(source), str(out), "--block-rows", "10", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_after_a_killed_or_interrupted_job_the_same_command_goes_on(bulk, queries, server, tmp_path, how):
    source, out = queries(100), tmp_path / "out"
    asked = 4 + 35  # in the fourth block
    server.faults.extend([lambda request, context: None] * asked + [hang(60)] * 8)
    with start(source, out) as job:
        wait_until(lambda: len(server.requests) >= asked + 1)
        job.send_signal(how)
        err = job.stderr.read()
    assert job.returncode == (-how if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert err == "triton-rerank: interrupted after 3 of 11 blocks; the same command goes on\n"
    server.faults.clear()
    kept = parts(out)
    assert len(kept) == 3
    status, told, _ = bulk(source, "--block-rows", 10)
    assert status == 0
    assert f"this run: {100 - 30} rows in" in told
    assert ranked(out) == expected(100)
    assert not list(out.glob(".*.tmp"))


def test_a_job_that_is_killed_before_it_has_its_settings_goes_on(bulk, queries, server, tmp_path):
    """It leaves nothing beside hidden files: neither a folder, nor settings that are not complete."""
    source, seen = queries(3), []

    def look(request, context):
        seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))

    server.faults.extend([None] * 2 + [look] * 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "._bulk.json.0.tmp").write_text("{")
    assert bulk(source)[0] == 0
    assert seen[-1] == [".lock", "_bulk.json"]


def test_two_jobs_do_not_write_to_one_output(bulk, queries, server, tmp_path):
    source = queries(20)
    server.faults.extend([lambda request, context: None] * 6 + [hang(60)] * 20)
    with start(source, tmp_path / "out") as job:
        wait_until(lambda: len(server.requests) >= 7)
        server.faults.clear()
        assert "another process is writing to this folder" in bulk(source, "--block-rows", 10)[2]
        job.kill()


def test_the_job_waits_for_a_server_that_is_restarted(bulk, queries, server, tmp_path):
    source = queries(40)

    def restart(request, context):
        server.stop()

    server.faults.extend([lambda request, context: None] * 20 + [restart])
    with start(source, tmp_path / "out", "--timeout", "0.5") as job:
        wait_until(lambda: not server.faults)
        time.sleep(1.0)  # longer than the timeout of a call
        with FakeTriton(port=server.port):
            err = job.stderr.read()
            job.wait()
    assert job.returncode == 0, err
    assert "repeating for up to 1800 s" in err
    assert ranked(tmp_path / "out") == expected(40)


def test_blocks_are_read_in_any_order(queries, tmp_path):
    file, _ = read_footer(queries(50))
    blocks = cut([file], 8)
    assert [block.rows for block in blocks] == [8, 8, 8, 8, 1, 8, 8, 1]
    assert [block.row for block in blocks] == [0, 8, 16, 24, 32, 33, 41, 49]
    reader = BlockReader(["query_id"])
    for index in (0, 1, 3, 2, 7, 5, 5, 4):
        block = blocks[index]
        names = reader.read(block).column("query_id").to_pylist()
        assert names == [f"q{row}" for row in range(block.row, block.row + block.rows)]


def test_an_input_that_changes_during_the_job_is_told(queries):
    file, _ = read_footer(queries(5))
    (block,) = cut([file], 5)[:1]
    queries(5, 7)
    with pytest.raises(ValueError, match="has changed since the job was started"):
        BlockReader(["query"]).read(block)
