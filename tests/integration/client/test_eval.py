"""`triton-rerank eval` as a user runs it, against the real server."""

import json

import pytest

from triton_rerank.cli.main import main
from triton_rerank.evaluation.trec import read_run

pytestmark = pytest.mark.integration

DOCUMENTS = {
    "flu": "Washing hands often and wearing a mask help to prevent influenza.",
    "bank": "The central bank raised interest rates by a quarter of a point.",
    "tokyo": "東京は日本の首都であり、世界最大の都市圏の一つである。",
    "moscow": "Москва является столицей России и крупнейшим городом страны.",
    "prevent": "Prevent, prevented, preventing: forms of a verb, prevent.",
}
QUERIES = {"q1": "How can I prevent influenza?", "q2": "東京はどの国の首都ですか", "q3": "столица России"}
RELEVANT = {"q1": "flu", "q2": "tokyo", "q3": "moscow"}


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, texts in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        lines = (json.dumps({"_id": key, "text": text}) for key, text in texts.items())
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = (f"{query}\t{document}\t1\n" for query, document in RELEVANT.items())
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


@pytest.fixture
def run_file(tmp_path):
    """A first stage that puts the relevant document last."""
    path = tmp_path / "first.trec"
    lines = []
    for query, relevant in RELEVANT.items():
        order = [*(name for name in DOCUMENTS if name != relevant), relevant]
        lines += [f"{query} Q0 {name} {rank} {-rank} run\n" for rank, name in enumerate(order, start=1)]
    path.write_text("".join(lines))
    return path


def evaluate(server, capsys, *arguments):
    assert main(["eval", "--url", server.grpc_url, *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_reranking_a_run_with_all_that_it_writes(server, capsys, beir, run_file, tmp_path):
    out = tmp_path / "out"
    said = json.loads(evaluate(server, capsys, "--beir", beir, "--run", run_file, "--out", out, "--json"))
    assert said["first_stage"]["RR@10"] == pytest.approx(1 / 5)
    assert said["reranked"] == {"nDCG@10": 1, "RR@10": 1, "R@100": 1, "AP": 1, "Success@1": 1}
    assert said["num_queries"] == 3
    assert said["num_pairs"] == 15
    assert said["reranked_minus_first_stage"]["RR@10"]["wins"] == 3
    assert said["model"]["checkpoint"] == "demo"
    whole = json.loads((out / "result.json").read_text())
    assert whole["per_query"]["q1"]["reranked"]["RR@10"] == 1
    assert whole["per_query"]["q1"]["total_s"] > 0
    reranked = read_run(out / "reranked.trec")
    assert {query: max(scores, key=scores.get) for query, scores in reranked.items()} == RELEVANT
    assert "nDCG@10" in (out / "report.txt").read_text()


def test_bm25_is_the_first_stage_without_a_run(server, capsys, beir):
    table = evaluate(server, capsys, "--beir", beir, "--depth", 2, "--max-queries", 2, "--measures", "nDCG@10", "R@2")
    assert table.startswith("2 queries, depth 2, ")
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["nDCG@10", "R@2"]


def test_what_was_scored_is_not_asked_again(server, capsys, beir, run_file, tmp_path):
    out = tmp_path / "out"
    arguments = ("--beir", beir, "--run", run_file, "--out", out)
    evaluate(server, capsys, *arguments, "--max-queries", 2)
    before = (out / "scores.jsonl").read_text()
    table = evaluate(server, capsys, *arguments)
    after = (out / "scores.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    # Every score is in the journal: the server is asked only for the model's name.
    assert evaluate(server, capsys, *arguments) == table
    assert main(["eval", "--url", server.grpc_url, *map(str, arguments), "--max-length", "64"]) == 1
    assert "max_length was None, now 64" in capsys.readouterr().err


def test_other_candidates_are_scored_anew(server, capsys, beir, run_file, tmp_path):
    arguments = ("--beir", beir, "--run", run_file, "--out", tmp_path / "out", "--json")
    shallow = json.loads(evaluate(server, capsys, *arguments, "--depth", 2))
    assert (shallow["num_pairs"], shallow["reranked"]["R@100"]) == (6, 0)
    deep = json.loads(evaluate(server, capsys, *arguments))
    assert (deep["num_pairs"], deep["reranked"]["R@100"]) == (15, 1)


def test_queries_with_their_own_documents(server, capsys, tmp_path):
    path = tmp_path / "dev.jsonl"
    lines = [
        {"query": QUERIES["q2"], "positive": [DOCUMENTS["tokyo"]], "negative": [DOCUMENTS["moscow"], DOCUMENTS["flu"]]},
        {"query": QUERIES["q1"], "positive": [DOCUMENTS["flu"]], "negative": [DOCUMENTS["tokyo"]]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = json.loads(evaluate(server, capsys, "--reranking", path, "--measures", "AP", "RR@10", "--json"))
    assert said["reranked"] == {"AP": 1, "RR@10": 1}
    assert said["depth"] is None
    assert said["num_pairs"] == 5
    out = tmp_path / "out"
    evaluate(server, capsys, "--reranking", path, "--measures", "AP", "--out", out)
    runs = (str(out / "first_stage.trec"), str(out / "reranked.trec"))
    assert main(["eval", "--reranking", str(path), "--measures", "AP", "--json", "--compare", *runs]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["first"] == json.loads((out / "result.json").read_text())["first_stage"]
    assert compared["second"] == {"AP": 1}


def test_baseline_and_comparison_of_two_runs(server, capsys, beir, run_file, tmp_path):
    out = tmp_path / "out"
    said = json.loads(evaluate(server, capsys, "--beir", beir, "--out", out, "--baseline", run_file, "--json"))
    assert said["baseline"]["RR@10"] == pytest.approx(1 / 5)
    assert main(["eval", "--beir", str(beir), "--compare", str(run_file), str(out / "reranked.trec")]) == 0
    shown = capsys.readouterr().out
    assert "3/0/0" in shown
    assert QUERIES["q3"] in shown
    arguments = ["eval", "--qrels", str(beir / "qrels.tsv"), "--compare", str(run_file), str(run_file), "--json"]
    assert main(arguments) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["first"] == same["second"]
    assert same["most_changed"] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--beir", "{beir}", "--measures", "foo@3"], "measure 'foo@3'"),
        (["--queries", "{beir}/queries.jsonl"], "--corpus is missing"),
        (["--beir", "{beir}", "--qrels", "x"], "not both"),
        (["--reranking", "x", "--beir", "{beir}"], "give it alone"),
        (["--beir", "/nowhere"], "/nowhere: neither"),
        (["--beir", "{beir}", "--run", "{bad}"], "names document nine for query q1"),
        (["--compare", "{bad}", "{bad}"], "--compare needs judgements"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, beir, tmp_path, arguments, reason):
    bad = tmp_path / "bad.trec"
    bad.write_text("q1 Q0 nine 1 1.0 run\n")
    assert main(["eval", *(argument.format(beir=beir, bad=bad) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
