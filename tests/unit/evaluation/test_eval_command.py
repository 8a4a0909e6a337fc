"""`triton-rerank eval` over a socket. The server's logit of a document that is a number is that number."""

import json
import os
import pty
import signal
import subprocess
import time

import ir_measures
import pytest

from support import CLIENT_COMMAND
from support.fake_triton import FakeTriton, hang
from triton_rerank.cli.main import main
from triton_rerank.cli.output import progress_line
from triton_rerank.evaluation.trec import read_qrels, read_run

COMMAND = [*CLIENT_COMMAND, "eval"]

DOCUMENTS = {"one": "1", "two": "2", "three": "3", "four": "4"}
QUERIES = {f"q{number}": f"query {number}" for number in range(1, 5)}
RELEVANT = {"q1": "four", "q2": "three", "q3": "two", "q4": "one"}


@pytest.fixture
def server(monkeypatch):
    with FakeTriton() as running:
        monkeypatch.setenv("TRITON_RERANK_URL", running.url)
        yield running


def write_corpus(folder, documents):
    lines = (json.dumps({"_id": key, "text": text}) + "\n" for key, text in documents.items())
    (folder / "corpus.jsonl").write_text("".join(lines))


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_corpus(folder, DOCUMENTS)
    lines = (json.dumps({"_id": key, "text": text}) + "\n" for key, text in QUERIES.items())
    (folder / "queries.jsonl").write_text("".join(lines))
    (folder / "qrels.tsv").write_text("".join(f"{query}\t{name}\t1\n" for query, name in RELEVANT.items()))
    # q1 and q2 have the candidates one to three, the others all documents.
    candidates = {query: list(DOCUMENTS)[: 3 if query in ("q1", "q2") else 4] for query in QUERIES}
    rows = (f"{query} Q0 {name} 1 {-len(name)} run\n" for query, names in candidates.items() for name in names)
    (tmp_path / "first.trec").write_text("".join(rows))
    return folder


@pytest.fixture
def arguments(beir, tmp_path):
    return ["--beir", str(beir), "--run", str(tmp_path / "first.trec"), "--out", str(tmp_path / "out")]


def scored(server):
    """Requests for scores."""
    return [request for request in server.requests if request.model_name == "reranker"]


def run(*arguments, **options):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


def test_only_queries_whose_texts_changed_are_scored_again(server, arguments, beir, capsys):
    assert main(["eval", *arguments]) == 0
    assert len(scored(server)) == 4
    assert main(["eval", *arguments, "--json"]) == 0
    assert len(scored(server)) == 4
    write_corpus(beir, {**DOCUMENTS, "four": "-4"})  # a candidate of q3 and q4 only
    capsys.readouterr()
    assert main(["eval", *arguments, "--json", "--measures", "RR@10"]) == 0
    assert len(scored(server)) == 6
    # q1: "four" is not a candidate; q2: three 1st; q3: three, two; q4: three, two, one.
    assert json.loads(capsys.readouterr().out)["reranked"]["RR@10"] == pytest.approx((0 + 1 + 1 / 2 + 1 / 3) / 4)
    lines = (beir / "queries.jsonl").read_text().replace("query 2", "another")
    (beir / "queries.jsonl").write_text(lines)
    assert main(["eval", *arguments]) == 0
    assert len(scored(server)) == 7


def test_a_journal_of_release_0_1_is_scored_again(server, arguments, tmp_path):
    assert main(["eval", *arguments]) == 0
    journal = tmp_path / "out" / "scores.jsonl"
    settings, *entries = map(json.loads, journal.read_text().splitlines())
    for entry in entries:
        del entry["input_digest"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in [settings, *entries]))
    assert main(["eval", *arguments]) == 0
    assert len(scored(server)) == 8


def test_comparison_counts_the_queries_of_both_runs(beir, tmp_path, capsys):
    small, large = tmp_path / "small.trec", tmp_path / "large.trec"
    small.write_text("q1 Q0 four 1 2 a\nq2 Q0 one 1 2 a\nq2 Q0 three 2 1 a\n")
    large.write_text(small.read_text() + "q3 Q0 two 1 2 a\n")
    command = ["eval", "--beir", str(beir), "--measures", "RR@10", "--compare", str(small), str(large)]
    assert main([*command, "--json"]) == 0
    said, warning = capsys.readouterr()
    compared = json.loads(said)
    assert compared["first"] == compared["second"] == {"RR@10": (1 + 1 / 2) / 2}
    assert compared["num_queries"] == 2
    assert (compared["num_only_first"], compared["num_only_second"], compared["num_neither"]) == (0, 1, 1)
    change = compared["second_minus_first"]["RR@10"]
    assert (change["wins"], change["ties"], change["losses"], change["p_t_test"]) == (0, 2, 0, 1)
    assert warning == (
        "triton-rerank: judged queries that are not counted: 1 in one run only (0 in the first, 1 in the second); "
        "1 in neither run\n"
    )
    qrels = {query: judged for query, judged in read_qrels(beir / "qrels.tsv").items() if query in ("q1", "q2")}
    oracle = ir_measures.calc_aggregate([ir_measures.parse_measure("RR@10")], qrels, read_run(large))
    assert list(oracle.values()) == [pytest.approx(0.75)]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("2 queries in both runs\n")


def test_runs_without_a_common_query_are_refused(beir, tmp_path, capsys):
    for name, query in (("a", "q1"), ("b", "q2")):
        (tmp_path / name).write_text(f"{query} Q0 one 1 2 a\n")
    assert main(["eval", "--beir", str(beir), "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "none of the 4 judged queries in common" in capsys.readouterr().err


def test_a_baseline_of_a_sample_counts_its_own_queries(server, arguments, tmp_path, capsys):
    baseline = tmp_path / "baseline.trec"
    baseline.write_text("q3 Q0 one 1 2 a\nq3 Q0 two 2 1 a\n")  # RR 1/2; reranked: four, three, two: 1/3
    assert main(["eval", *arguments, "--measures", "RR@10", "--json", "--baseline", str(baseline)]) == 0
    said, warning = capsys.readouterr()
    summary = json.loads(said)
    assert (summary["baseline"], summary["baseline_num_queries"]) == ({"RR@10": 0.5}, 1)
    assert summary["reranked_minus_baseline"]["RR@10"]["mean"] == pytest.approx(1 / 3 - 1 / 2)
    assert "3 in the second" in warning


def test_a_first_stage_of_a_sample_is_reported(server, arguments, tmp_path, capsys):
    first = tmp_path / "first.trec"
    first.write_text("q3 Q0 one 1 2 a\n")
    assert main(["eval", *arguments]) == 0
    assert "3 of 4 judged queries are not in the run; they have no candidates and count 0" in capsys.readouterr().err
    first.write_text("x Q0 one 1 2 a\n")
    assert main(["eval", *arguments]) == 1
    assert "none of the 4 judged queries is in the run" in capsys.readouterr().err


def test_pool_depth_and_threshold_are_reported(server, arguments, capsys):
    assert main(["eval", *arguments, "--depth", "3"]) == 0
    table = capsys.readouterr().out
    # Ties by id: q3 and q4 keep two of "one", "two" (3 letters) and "four" (4). q1 lacks "four".
    assert "pool: 3 candidates per query (median 3) from the given run" in table
    assert "they hold 75.0% of the relevant documents" in table
    assert [line.split()[0] for line in table.splitlines()[3:8]] == ["nDCG@10", "RR@10", "R@3", "AP", "Success@1"]
    assert "min_relevance_score 0." in table
    assert main(["eval", *arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert "R@100" in summary["reranked"]
    assert summary["pool"]["recall"] == 0.75
    assert 0 < summary["threshold"]["min_relevance_score"] < 1


def test_plots_take_result_json_and_print_their_path(server, beir, arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", *arguments]) == 0
    out.rename(tmp_path / "before")
    assert main(["eval", *arguments]) == 0
    out.rename(tmp_path / "after")
    capsys.readouterr()
    figure = tmp_path / "figure.svg"
    files = [str(tmp_path / name / "result.json") for name in ("before", "after")]
    assert main(["eval", "--plot", str(figure), *files]) == 0
    assert capsys.readouterr().out == f"{figure}\n"
    drawn = figure.read_text()
    assert all(f"<!-- {label} -->" in drawn for label in ("before", "after", "first stage", "reranker"))
    assert main(["eval", "--plot", *files]) == 1
    assert "--plot takes the figure to write, then a models.json or result.json" in capsys.readouterr().err
    assert main(["eval", "--plot", str(figure), files[0], files[0]]) == 1
    assert "two files of the folder" in capsys.readouterr().err
    assert main(["eval", "--plot", str(figure), str(beir / "corpus.jsonl")]) == 1
    assert "not a models.json or result.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--beir", "{beir}", "--split", "dev"], "qrels/dev.tsv does not exist; leave out the split to use qrels.tsv"),
        (["--beir", "{beir}/nosuch"], "set/nosuch: no such folder"),
        (["--reranking", "x", "--split", "dev"], "--split selects a file of --beir DIR"),
        (["--beir", "{beir}", "--compare", "a", "b", "--out", "x"], "--out has no effect with --compare"),
        (["--plot", "a.svg", "b", "--baseline", "x"], "--baseline has no effect with --plot"),
        (["--plot", "a.svg", "b", "--compare", "a", "b"], "give one of them"),
    ],
)
def test_options_that_would_be_ignored_are_refused(beir, capsys, arguments, reason):
    assert main(["eval", *(argument.format(beir=beir) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("out", ["{tmp}/file", "{tmp}/file/folder", "/proc", "/proc/nosuch"])
def test_an_unusable_output_folder_is_reported_before_any_work(server, arguments, tmp_path, capsys, out):
    (tmp_path / "file").write_text("")
    out = out.format(tmp=tmp_path)
    assert main(["eval", *arguments[:-1], out]) == 1
    assert f"triton-rerank: {out}" in capsys.readouterr().err
    assert (server.requests, server.config_calls) == ([], 0)


@pytest.mark.parametrize(("limit", "name"), [(100, "scores.jsonl"), (1500, "result.json")])
def test_a_full_disk_names_the_file(server, arguments, tmp_path, limit, name):
    """A limit of the file size fails as a full disk does: in `write`, whose error has no path."""
    path = tmp_path / "out" / name
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {COMMAND[-2]}"
    done = subprocess.run(
        [*COMMAND[:-2], code, "eval", *arguments],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"triton-rerank: {path}: File too large\n")
    assert not list(path.parent.glob("*.tmp"))
    assert run(*arguments).returncode == 0


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def start_and_hang(server, arguments, after):
    """An evaluation that has scored `after` queries and hangs in the next one."""
    server.faults.extend([lambda request, context: None] * (1 + after))  # the first request asks for model_info
    server.faults.append(hang(60))
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--concurrency", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(scored(server)) == after + 1)
    return process


@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupted_evaluation_says_how_to_resume(server, arguments, keep):
    given = arguments if keep else arguments[:-2]
    process = start_and_hang(server, given, 2)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)  # it does not wait for the call that hangs
    remedy = "the same command resumes" if keep else "nothing was kept; --out DIR keeps completed queries"
    assert stderr == f"triton-rerank: interrupted after 2 of 4 queries; {remedy}\n"
    assert (process.returncode, stdout) == (130, "")
    assert run(*given).returncode == 0
    assert len(scored(server)) == 3 + (2 if keep else 4)


def test_a_second_evaluation_in_the_same_folder_is_refused(server, arguments, tmp_path):
    process = start_and_hang(server, arguments, 1)
    try:
        before = (tmp_path / "out" / "scores.jsonl").read_bytes()
        done = run(*arguments, "--max-queries", "2")
        assert done.returncode == 1
        assert done.stderr.startswith(f"triton-rerank: {tmp_path}/out/.lock: another process is writing")
        assert len(done.stderr.splitlines()) == 1
        assert (tmp_path / "out" / "scores.jsonl").read_bytes() == before
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
    assert run(*arguments).returncode == 0


def test_progress_on_a_terminal(server, arguments):
    terminal, inner = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=inner)
    os.close(inner)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the process has ended
            break
    os.close(terminal)
    assert process.wait(timeout=20) == 0
    assert b"reranking: 0 of 4 queries" in shown
    assert b"reranking: 4 of 4 queries, " in shown


@pytest.mark.parametrize(
    ("done", "total", "each_s", "line"),
    [
        (37, 739, 4.1, "reranking: 37 of 739 queries, 4.1 s each, 48 min left"),  # 702 * 4.1 s = 2878 s
        (0, 739, None, "reranking: 0 of 739 queries"),
        (50, 60, 0.25, "reranking: 50 of 60 queries, 4 a second, 2 s left"),
        (1, 7001, 3.0, "reranking: 1 of 7,001 queries, 3.0 s each, 5.8 h left"),
        (60, 60, 2.0, "reranking: 60 of 60 queries, 2.0 s each"),
    ],
)
def test_the_progress_line(done, total, each_s, line):
    assert progress_line("reranking", done, total, "queries", each_s) == line


def test_a_model_that_is_replaced_meanwhile_ends_it(server, arguments, tmp_path, capsys):
    def replaced(request, context):
        server.version = "2"

    server.faults.extend([None, None, None, replaced])
    assert main(["eval", *arguments, "--concurrency", "1"]) == 1
    said = capsys.readouterr().err
    assert "version 1 scored the queries before, version 2 this one: the model was replaced" in said
    assert "another --out" in said
    assert 2 <= len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) <= 4
