"""The comparison with other rerankers, without running them: schedule, ratios, agreement, worker process."""

import sys
from pathlib import Path

import psutil
import pytest

from comparison.peers import OURS, PEERS, PeerError, Worker, last_line
from comparison.results import Cell, Comparison, Run
from load.workload import Search
from support.monitors import wait_until

CELL = Cell(10, 1)
LOGITS = [float(number) for number in range(10)]


def comparison(tmp_path, **seconds):
    """One with runs in CELL: contender -> seconds of each round."""
    made = Comparison.load(tmp_path / "runs.json", "demo")
    for name, all_seconds in seconds.items():
        contender = OURS if name == "ours" else name.replace("_", "-")
        made.runs += [Run(str(CELL), number, contender, took, LOGITS) for number, took in enumerate(all_seconds)]
    return made


def played(made, contenders, rounds, enough_s, seconds):
    """The contenders in the order in which they ran."""
    order = []
    while following := next(made.left([CELL], contenders, rounds, enough_s), None):
        cell, number, name = following
        made.runs.append(Run(str(cell), number, name, seconds[name], LOGITS))
        order.append(name)
    return order


def test_a_cell_is_documents_by_callers():
    assert Cell.parse("100x8") == Cell(100, 8)
    assert (Cell(100, 8).pairs, str(Cell(100, 8))) == (800, "100x8")
    for text in ("100", "0x1", "1x0", "axb"):
        with pytest.raises(ValueError, match=r"expected|start at 1|literal"):
            Cell.parse(text)


def test_who_begins_changes_every_round(tmp_path):
    order = played(comparison(tmp_path), ["a", "b", "c"], 3, 100, {"a": 1, "b": 1, "c": 1})
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_the_slow_stop_when_they_took_enough_and_the_fastest_peer_never(tmp_path):
    seconds = {OURS: 50, "fast": 60, "slow": 90}
    order = played(comparison(tmp_path), list(seconds), 4, 100, seconds)
    assert {name: order.count(name) for name in seconds} == {OURS: 4, "fast": 4, "slow": 2}


def test_what_failed_is_not_run_again(tmp_path):
    made = comparison(tmp_path)
    made.failures["b"] = "no such package"
    assert played(made, ["a", "b"], 2, 100, {"a": 1}) == ["a", "a"]


def test_the_ratio_is_the_median_over_the_rounds_that_both_ran(tmp_path):
    made = comparison(tmp_path, ours=[1, 2, 4], st_onnx=[2, 5, 40], infinity=[30])
    assert made.peers(CELL) == ["st-onnx", "infinity"]
    assert made.ratio(CELL, "st-onnx") == 2.5
    assert made.ratio(CELL, "infinity") == 30
    assert made.best_ratio(CELL) == 2.5
    assert made.best_ratio(Cell(100, 1)) != made.best_ratio(Cell(100, 1))  # NaN: nothing was measured


def test_a_later_start_goes_on(tmp_path):
    made = comparison(tmp_path, ours=[1.5], st_onnx=[2.5])
    made.versions = {OURS: {"openvino": "1"}}
    made.save()
    again = Comparison.load(tmp_path / "runs.json", "demo")
    assert (again.runs, again.versions) == (made.runs, made.versions)
    again.forget([OURS])
    assert [run.contender for run in again.runs] == ["st-onnx"]


def test_other_logits_are_refused(tmp_path):
    made = comparison(tmp_path, ours=[1], st_torch_fp32=[1])
    made.runs.append(Run(str(CELL), 0, "st-torch-bf16", 1, [logit + 0.1 for logit in LOGITS]))
    assert made.agreement()[OURS] == (0, pytest.approx(1))
    made.runs.append(Run(str(CELL), 0, "infinity", 1, LOGITS[::-1]))
    with pytest.raises(ValueError, match="infinity computes something else: a logit differs by 9"):
        made.agreement()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A stand-in for sentence-transformers: a document's logit is its length; "crash" ends the process."""
    package = tmp_path / "library" / "sentence_transformers.py"
    package.parent.mkdir()
    package.write_text(
        "import os, sys\n"
        "class CrossEncoder:\n"
        "    def __init__(self, *_, **options): print('loaded', options)\n"
        "    def predict(self, pairs, **_):\n"
        "        if pairs[0][1] == 'crash': print('out of memory', file=sys.stderr, flush=True); os._exit(7)\n"
        "        return [len(document) for _, document in pairs]\n"
    )
    about = package.parent / "sentence_transformers-6.2.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sentence-transformers\nVersion: 6.2.0\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def test_a_peer_answers_stands_still_and_tells_why_it_ended(library, tmp_path):
    worker = Worker(PEERS["st-torch-fp32"], Path(sys.executable), tmp_path, tmp_path / "converted")
    assert worker.versions["sentence-transformers"] == "6.2.0"
    answer = worker.answer([Search("q", ("a", "bc")), Search("q", ("def",))], callers=2)
    assert answer.logits == [[1.0, 2.0], [3.0]]
    children = [child for child in psutil.Process().children() if "peer_worker.py" in " ".join(child.cmdline())]
    assert len(children) == 1
    wait_until(lambda: children[0].status() == psutil.STATUS_STOPPED)
    with pytest.raises(PeerError, match="ended with status 7: out of memory"):
        worker.answer([Search("q", ("crash",))], callers=1)
    worker.close()


def test_a_peer_that_does_not_load_says_why(tmp_path):
    with pytest.raises(PeerError, match="No module named 'infinity_emb'"):
        Worker(PEERS["infinity"], Path(sys.executable), tmp_path, tmp_path / "converted")


def test_what_a_program_said_last():
    assert last_line(b"Collecting x\nERROR: No matching distribution found for x\n\n").startswith("ERROR: No matching")
    assert last_line(b"") == "it said nothing"
