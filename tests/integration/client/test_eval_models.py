"""`triton-rerank eval` with a reranker and late interaction in one server, on the same candidates."""

import json

import pytest

from support.small_corpus import SEARCHES, TEXTS
from triton_rerank.cli.main import main
from triton_rerank.evaluation.collections import Collection
from triton_rerank.evaluation.measures import measure
from triton_rerank.evaluation.pool import pool_of
from triton_rerank.evaluation.trec import fuse, ranked, read_qrels, read_run

pytestmark = pytest.mark.integration


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    queries = {f"q{number}": search for number, search in enumerate(SEARCHES)}
    for name, texts in (("corpus", TEXTS), ("queries", {key: search.query for key, search in queries.items()})):
        lines = (json.dumps({"_id": key, "text": text}) for key, text in texts.items())
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "qrels.tsv").write_text("".join(f"{key}\t{search.best}\t1\n" for key, search in queries.items()))
    return folder


def test_models_and_their_fusion_on_the_same_candidates(both_server, beir, tmp_path, capsys):
    assert both_server.models == ("reranker", "late_interaction")
    out = tmp_path / "out"
    arguments = ["eval", "--url", both_server.grpc_url, "--model", "reranker", "--model", "late_interaction"]
    arguments += ["--beir", str(beir), "--depth", "4", "--measures", "nDCG@10", "RR@10", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["systems"]) == ["first stage", "reranker", "late_interaction", "fused"]
    assert {fields["model"]["model"] for fields in said["systems"].values() if "model" in fields} == {
        "reranker",
        "late_interaction",
    }
    assert said["pool"]["num_documents"] == len(TEXTS)
    runs = [read_run(out / name / "reranked.trec") for name in ("reranker", "late_interaction")]
    first_stage = read_run(out / "first_stage.trec")
    for query_id, candidates in first_stage.items():
        assert runs[0][query_id].keys() == runs[1][query_id].keys() == candidates.keys()
    best = {query_id: ranked(scores)[0] for query_id, scores in fuse(runs).items()}  # ties as in trec_eval
    judged = {f"q{number}": search.best for number, search in enumerate(SEARCHES)}
    right = sum(best[query_id] == judged[query_id] for query_id in judged) / len(judged)
    assert (said["systems"]["fused"]["mean"]["RR@10"] == 1) == (right == 1)
    # Nothing is scored again, and the table describes the pool.
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert (out / "models.txt").read_text() == table
    assert f"out of {len(TEXTS)} documents; they hold 100.0% of the relevant documents" in table
    assert main(["eval", "--plot", str(tmp_path / "a.svg"), str(out / "models.json")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.svg'}\n"
    assert "late_interaction" in (tmp_path / "a.svg").read_text()
    assert main(["eval", "--plot", str(tmp_path / "a.svg"), str(out / "models.json"), "--measures", "AP"]) == 1
    assert "first stage has no AP" in capsys.readouterr().err


def test_cascades_beside_both_models_alone(both_server, beir, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["eval", "--url", both_server.grpc_url, "--cascade", "2", "0.5", "99", "--depth", "all"]
    arguments += ["--beir", str(beir), "--measures", "nDCG@10", "RR@10", "--out", str(out), "--concurrency", "1"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    systems = json.loads((out / "models.json").read_text())["systems"]
    models, cascades = ["reranker", "late_interaction"], ["cascade-2", "cascade-0.5", "cascade-99"]
    assert list(systems) == ["first stage", *models, *cascades, "fused"]
    everything = len(TEXTS)
    pairs = [systems[name]["pairs_per_query"] for name in (*models, *cascades)]
    assert pairs == [everything, everything, 2, -(-everything // 2), everything]
    second, first, *found = (read_run(out / name / "reranked.trec") for name in (*models, *cascades))
    for keep, run in zip((2, -(-everything // 2), everything), found, strict=True):
        for query_id, scores in run.items():
            kept = ranked(first[query_id])[:keep]
            best = sorted(kept, key=ranked(second[query_id]).index)
            assert ranked(scores) == best + ranked(first[query_id])[keep:], keep
    assert {name for name in systems if systems[name].get("query_s", {}).get("first_stage")} == set(cascades[:2])
    fused = measure(["nDCG@10"], read_qrels(beir / "qrels.tsv"), fuse([second, first]))
    assert systems["fused"]["mean"]["nDCG@10"] == fused.mean["nDCG@10"]
    # Nothing is scored again, and a figure shows quality over time.
    assert main(arguments) == 0
    assert capsys.readouterr().out == table
    figure = tmp_path / "times.svg"
    assert main(["eval", "--against-time", "--plot", str(figure), str(out / "models.json")]) == 0
    drawn = figure.read_text()
    assert all(f"<!-- {name} -->" in drawn for name in (*models, *cascades, "out", "milliseconds of a query"))
    assert "<!-- fused -->" not in drawn


def test_a_figure_of_times_needs_times(tmp_path, capsys):
    (tmp_path / "result.json").write_text('{"first_stage": {"AP": 1.0}, "model": {"model": "reranker"}}')
    assert main(["eval", "--against-time", "--plot", str(tmp_path / "a.svg"), str(tmp_path / "result.json")]) == 1
    assert "not a models.json file of an evaluation, which has times" in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["0", "-1", "0.0", "1.5", "all"])
def test_a_cascade_keeps_documents(beir, capsys, keep):
    with pytest.raises(SystemExit):
        main(["eval", "--beir", str(beir), "--cascade", keep])
    assert "argument --cascade: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "reranker", "--model", "reranker"], "--model reranker is given twice"),
        (["--model", "a", "--model", "b", "--baseline", "x"], "--baseline is for one --model"),
        (["--cascade", "5", "--model", "a", "--model", "b", "--model", "c"], "--cascade is for two models"),
        (["--cascade", "5", "--compare", "a", "b"], "--cascade has no effect with --compare"),
        (["--against-time"], "--against-time is an option of --plot"),
        (["--plot", "a.svg"], "--plot takes the figure to write, then"),
    ],
)
def test_conflicting_options_are_refused(beir, capsys, arguments, reason):
    assert main(["eval", "--beir", str(beir), "--depth", "2", *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_the_pool_describes_the_candidates():
    qrels = {"a": {"1": 1, "2": 2, "3": 0}, "b": {"4": 1}, "c": {"5": 0}}
    collection = Collection(dict.fromkeys(qrels, "text"), dict.fromkeys("12345", "text"), qrels)
    pool = pool_of(collection, {"a": {"1": 1.0, "3": 0.5}, "b": {"4": 1.0}, "c": {"1": 1.0, "2": 0.5, "4": 0.1}})
    assert (pool.smallest, pool.median, pool.largest, pool.recall) == (1, 2, 3, 0.75)
    assert "1 to 3 candidates per query (median 2) out of 5 documents; they hold 75.0%" in pool.sentence()
