"""`triton_rerank.ray.Reranker` on the batches of each engine, with rows that cannot be ranked, and full servers."""

import pickle
import subprocess
import sys

import grpc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from support.fake_triton import refuse
from triton_rerank import InvalidRequestError, ServerUnavailableError
from triton_rerank.ray import Reranker

ROWS = {"name": ["a", "b", "c"], "query": ["x", "y", "z"], "candidates": [["1", "3"], ["2"], ["5", "4", "6"]]}
RANKED = [[1, 0], [0], [2, 0, 1]]
FULL = refuse(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


@pytest.fixture
def make(server):
    made = []

    def one(**arguments):
        made.append(Reranker(server.url, **arguments))
        return made[-1]

    yield one
    for reranker in made:
        reranker.close()


def as_objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = [np.array(value, dtype=object) for value in values]
    return array


BATCHES = {
    "pyarrow": pa.table(ROWS),
    "pandas": pd.DataFrame(ROWS, index=[7, 8, 9]),
    "numpy": {
        **{name: np.array(ROWS[name]) for name in ("name", "query")},
        "candidates": as_objects(ROWS["candidates"]),
    },
}


@pytest.mark.parametrize("kind", BATCHES)
def test_each_kind_of_batch_comes_back_with_two_more_columns(make, kind):
    batch = BATCHES[kind]
    found = make(raw=True)(batch)
    assert type(found) is type(batch)
    assert list(found.column_names if kind == "pyarrow" else found) == [*ROWS, "ranked_ids", "scores"]
    columns = found.to_pydict() if kind == "pyarrow" else found
    assert list(columns["name"]) == ["a", "b", "c"]
    assert [list(ids) for ids in columns["ranked_ids"]] == RANKED
    assert [list(scores) for scores in columns["scores"]] == [[3, 1], [2], [6, 5, 4]]
    assert "scores" not in (batch.column_names if kind == "pyarrow" else batch)
    if kind == "pandas":
        assert list(found.index) == [7, 8, 9]
    if kind == "pyarrow":
        assert found.schema.field("ranked_ids").type == pa.list_(pa.int64())
        assert found.schema.field("scores").type == pa.list_(pa.float32())


def test_ids_stand_in_a_column_or_in_the_candidates(make):
    batch = pa.table({"q": ["x"], "docs": [[{"sku": "s1", "title": "1"}, {"sku": "s2", "title": "2"}]], "no": [[8, 9]]})
    names = {"query_column": "q", "candidates_column": "docs", "text_from": ["title"]}
    assert make(**names, id_field="sku")(batch).column("ranked_ids").to_pylist() == [["s2", "s1"]]
    assert make(**names, ids_column="no")(batch).column("ranked_ids").to_pylist() == [[9, 8]]
    assert make(**names, top_n=1)(batch).column("ranked_ids").to_pylist() == [[1]]


def test_calls_have_the_servers_last_priority(make, server):
    server.priority_levels = 4
    make()(pa.table(ROWS))
    assert server.requests[-1].parameters["priority_level"].int64_param == 4
    make(priority=1)(pa.table(ROWS))
    assert server.requests[-1].parameters["priority_level"].int64_param == 2
    server.priority_levels = 0
    make()(pa.table(ROWS))
    assert "priority_level" not in server.requests[-1].parameters


BAD = [
    ({"query": None}, "column query: is null"),
    ({"query": " "}, "column query: is empty"),
    ({"candidates": None}, "column candidates: is null"),
    ({"candidates": []}, "column candidates: is an empty list"),
    ({"candidates": ["1", None]}, "column candidates: candidates[1] is null"),
    ({"candidates": ["1"] * 10_001, "ids": list(range(10_001))}, "column candidates: holds 10,001 candidates"),
    ({"ids": [4, 4]}, "column ids: ids[0] and ids[1] have the same id 4"),
    ({"ids": [4]}, "column ids: holds 1 ids for 2 candidates"),
    ({"ids": [4, None]}, "column ids: the id of ids[1] is null"),
    ({"ids": None}, "column ids: is null"),
]


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_row_that_cannot_be_ranked_raises_or_is_kept(make, change, reason):
    good = {"query": "x", "candidates": ["1", "2"], "ids": [5, 6]}
    batch = pa.Table.from_pylist([good, {**good, **change}, good])
    found = make(ids_column="ids", on_error="keep")(batch)
    assert found.column("ranked_ids").to_pylist() == [[6, 5], None, [6, 5]]
    assert found.column("scores").null_count == 1
    first, told, last = found.column("error").to_pylist()
    assert first is last is None
    assert told.startswith(reason)
    with pytest.raises(InvalidRequestError) as raised:
        make(ids_column="ids")(batch)
    assert str(raised.value).startswith(f"row 1 of the batch, {reason}")


def test_numpy_and_pandas_values_that_are_not_texts(make):
    candidates = as_objects([["1"], [2.5], ["1"]])
    query = np.array(["a", "b", float("nan")], dtype=object)
    for batch in ({"query": query, "candidates": candidates}, pd.DataFrame({"query": query, "candidates": candidates})):
        first, *told = make(on_error="keep")(batch)["error"]
        assert pd.isna(first)
        assert told == ["column candidates: candidates[0] is not a text (got float)", "column query: is null"]


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ([1], "the batch is list; pass an Arrow table, a pandas frame or a dict"),
        ({"query": ["x"]}, "the batch has no column 'candidates', or two of them; it has 'query'"),
    ],
)
def test_a_batch_that_cannot_be_read_raises(make, batch, reason):
    with pytest.raises(InvalidRequestError) as raised:
        make(on_error="keep")(batch)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"on_error": "drop"}, "on_error is 'drop'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"patience": None}, "patience is None"),
        ({"top_n": 0}, "top_n is 0"),
        ({"scores_column": "ranked_ids"}, "go to one column"),
    ],
)
def test_unusable_arguments_raise_at_once(make, arguments, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        make(**arguments)


def test_options_that_the_server_refuses_fail_no_rows_but_the_job(make):
    with pytest.raises(InvalidRequestError, match="takes no instruction"):
        make(on_error="keep", instruction="find")(pa.table(ROWS))


def test_copies_connect_anew(make):
    found = pickle.loads(pickle.dumps(make(raw=True, on_error="keep")))
    assert found(pa.table(ROWS)).column("ranked_ids").to_pylist() == RANKED
    found.close()
    assert found(pa.table(ROWS)).num_rows == 3
    found.close()


def test_a_row_on_which_the_model_fails_three_times_is_kept_or_raises(make, server, monkeypatch):
    monkeypatch.setattr("triton_rerank.bulk.ranker.gone_backoff_s", lambda retries: 0.0)
    answer = server.answer

    def fail_on_two(request):
        if b"666" in request.raw_input_contents[1]:
            raise ValueError("no")  # gRPC answers UNKNOWN
        return answer(request)

    server.answer = fail_on_two
    batch = pa.table({"query": ["x", "y"], "candidates": [["1"], ["666"]]})
    found = make(on_error="keep")(batch)
    assert found.column("ranked_ids").to_pylist() == [[0], None]
    assert found.column("error").to_pylist()[1].startswith("InferenceError: ")
    with pytest.raises(InvalidRequestError, match="row 1 of the batch, InferenceError: "):
        make()(batch)


def test_full_servers_are_asked_again_until_they_have_room(make, server):
    reranker = make(concurrency=4, raw=True)
    reranker(pa.table(ROWS))
    server.faults.extend([FULL] * 30)
    many = pa.table({"query": ["x"] * 40, "candidates": [["1", "2"]] * 40})
    assert reranker(many).column("ranked_ids").to_pylist() == [[1, 0]] * 40
    assert not server.faults


def test_without_an_answer_a_job_ends_after_its_patience(make, server):
    reranker = make(patience=0.5, on_error="keep", timeout=0.2)
    reranker(pa.table(ROWS))
    server.stop()
    with pytest.raises(ServerUnavailableError, match=r"no call was answered for \d s: .*127.0.0.1"):
        reranker(pa.table(ROWS))


def test_import_needs_no_library_and_hides_no_ray():
    heavy = "{'ray', 'pyarrow', 'pandas', 'grpc'}"
    code = f"import sys, triton_rerank.ray; print({heavy} & set(sys.modules)); import ray; ray.init"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
