"""Measures against published numbers and trec_eval's documentation."""

import math

import pytest
from scipy import stats

from triton_rerank import InvalidRequestError
from triton_rerank.evaluation.measures import check_measures, default_measures, difference, measure
from triton_rerank.evaluation.trec import fuse, ranked, read_qrels, read_run, write_run

# The example of the README of pytrec_eval, trec_eval's binding, with the numbers printed there.
QRELS = {"q1": {"d1": 0, "d2": 1, "d3": 0}, "q2": {"d2": 1, "d3": 1}}
RUN = {"q1": {"d1": 1.0, "d2": 0.0, "d3": 1.5}, "q2": {"d1": 1.5, "d2": 0.2, "d3": 0.5}}


def test_published_example_of_trec_evals_binding():
    measured = measure(["AP", "nDCG"], QRELS, RUN)
    assert measured.per_query["AP"] == pytest.approx({"q1": 0.3333333333333333, "q2": 0.5833333333333333})
    assert measured.per_query["nDCG"] == pytest.approx({"q1": 0.5, "q2": 0.6934264036172708})
    assert measured.mean["AP"] == pytest.approx((1 / 3 + 7 / 12) / 2)


def test_published_example_of_graded_gain():
    # Wikipedia, "Discounted cumulative gain": six results of relevance 3 2 3 0 1 2, two more (3, 2) in the
    # collection; DCG 6.861, ideal DCG of six 8.740, nDCG 0.785. trec_eval's gain is linear, like this one.
    relevance = dict(zip("abcdefgh", [3, 2, 3, 0, 1, 2, 3, 2], strict=True))
    run = {"q": {name: 6.0 - index for index, name in enumerate("abcdef")}}
    assert measure(["nDCG@6"], {"q": relevance}, run).mean["nDCG@6"] == pytest.approx(0.785, abs=5e-4)


def test_each_measure_by_hand():
    run = {"q": {"a": 5.0, "b": 4.0, "c": 3.0, "d": 2.0}}
    qrels = {"q": {"b": 1, "d": 1, "z": 1}}
    expected = {
        "RR@10": 1 / 2,
        "RR@1": 0.0,
        "R@2": 1 / 3,
        "R@100": 2 / 3,
        "P@2": 1 / 2,
        "Success@1": 0.0,
        "Success@5": 1,
    }
    expected["AP"] = (1 / 2 + 2 / 4) / 3
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    expected["nDCG@10"] = (1 / math.log2(3) + 1 / math.log2(5)) / ideal
    assert measure(list(expected), qrels, run).mean == pytest.approx(expected)


def test_a_judged_query_without_documents_counts_zero_and_an_unjudged_one_not():
    measured = measure(["RR@10"], {"q1": {"a": 1}, "q2": {"a": 1}}, {"q1": {"a": 1.0}, "other": {"a": 1.0}})
    assert measured.per_query["RR@10"] == {"q1": 1.0, "q2": 0.0}
    assert measured.mean["RR@10"] == 0.5


def test_equal_scores_rank_as_trec_eval_ranks_them():
    scores = {"a": 1.0, "c": 1.0, "b": 2.0}
    assert ranked(scores) == ["b", "c", "a"]
    for name in ("RR", "RR@10"):  # computed by different programs
        values = {doc_id: measure([name], {"q": {doc_id: 1}}, {"q": scores}).mean[name] for doc_id in scores}
        assert values == pytest.approx({"b": 1, "c": 1 / 2, "a": 1 / 3})


def test_names_are_normalized_and_unknown_ones_refused():
    assert check_measures(["nDCG@10", "RR(rel=2)@10", "nDCG@10"]) == ["nDCG@10", "RR(rel=2)@10"]
    for name in ("foo@3", "nDCG@", "nDCG(foo=1)"):
        with pytest.raises(InvalidRequestError, match="ir_measures"):
            check_measures([name])


@pytest.mark.parametrize(("depth", "recall"), [(None, "R@100"), (1000, "R@100"), (100, "R@100"), (20, "R@20")])
def test_default_recall_is_cut_at_the_depth(depth, recall):
    assert default_measures(depth) == ("nDCG@10", "RR@10", recall, "AP", "Success@1")


def test_difference_agrees_with_scipy():
    first = {f"q{i}": value for i, value in enumerate([0.2, 0.5, 0.5, 0.1, 0.9, 0.3, 0.0, 0.4])}
    second = {f"q{i}": value for i, value in enumerate([0.4, 0.5, 0.9, 0.3, 0.8, 0.9, 0.1, 0.8])}
    change = difference(first, second)
    assert (change.wins, change.ties, change.losses) == (6, 1, 1)
    assert change.mean == pytest.approx(1.8 / 8)
    before, after = list(first.values()), list(second.values())
    assert change.p_t_test == pytest.approx(stats.ttest_rel(after, before).pvalue)
    exact = stats.permutation_test(
        (after, before), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    ).pvalue
    assert change.p_randomization == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("values", [{"q1": 0.5}, {"q1": 0.5, "q2": 0.1}])
def test_no_difference_is_no_evidence(values):
    change = difference(values, values)
    assert (change.mean, change.p_t_test, change.p_randomization) == (0, 1, 1)


def test_fusion_adds_reciprocal_ranks():
    fused = fuse([{"q": {"a": 9.0, "b": 8.0}}, {"q": {"b": 0.2, "c": 0.1}}])
    assert fused["q"] == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})


def test_runs_come_back_as_they_were_written(tmp_path):
    run = {"q1": {"a": 1.25, "b": -7.5}, "q2": {"c": 1e-9}}
    write_run(tmp_path / "run.trec", run, "tag")
    assert (tmp_path / "run.trec").read_text().splitlines()[0] == "q1 Q0 a 1 1.25 tag"
    assert read_run(tmp_path / "run.trec") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.trec"]


def test_ms_marcos_run_has_ranks(tmp_path):
    (tmp_path / "run.tsv").write_text("7\tp9\t1\n7\tp4\t2\n")
    assert read_run(tmp_path / "run.tsv") == {"7": {"p9": 1.0, "p4": 0.5}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q1 Q0 d9 1", "4 columns"),
        ("q1 Q0 d9 1 high tag", "score is 'high'"),
        ("q1 Q0 d9 1 nan tag", "score is 'nan'"),
        ("q1 d9 0", "rank is '0'"),
        ("q1 Q0 d1 2 0.5 tag", "document d1 occurs a second time"),
    ],
)
def test_a_bad_line_of_a_run_is_named(tmp_path, line, reason):
    path = tmp_path / "run"
    path.write_text(f"q1 Q0 d1 1 0.7 tag\n\n{line}\n")
    with pytest.raises(InvalidRequestError) as raised:
        read_run(path)
    assert str(raised.value).startswith(f"{path}:3: {reason}")


def test_qrels_of_both_layouts(tmp_path):
    beir, trec = tmp_path / "beir", tmp_path / "trec"
    beir.write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    trec.write_text("q1 0 d1 2\n")
    assert read_qrels(beir) == read_qrels(trec) == {"q1": {"d1": 2}}
    trec.write_text("q1 0 d1 2\nq1 0 d1 yes\n")
    with pytest.raises(InvalidRequestError, match=r"trec:2: relevance is 'yes'"):
        read_qrels(trec)
