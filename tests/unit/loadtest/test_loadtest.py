"""The load test's pure parts: workload, recording, thresholds, knee, report."""

import bz2
import json
import math
from itertools import islice

import pytest
from matplotlib.figure import Figure
from tokenizers import Tokenizer

from benchmarks import package_descriptions
from load.plots import ENSEMBLES, draw_errors, draw_latency, draw_queue_and_compute, throughput, window_length_s
from load.recording import Call, ModelState, Recording, broken_thresholds, difference, percentile
from load.report import knee, write_report
from load.workload import from_file, generated
from run import counts
from support import ROOT
from triton_rerank.evaluation.collections import load_reranking
from triton_rerank_build.late_interaction.repository import TEMPLATES


def take(count, searches):
    return list(islice(searches, count))


def test_the_same_seed_gives_the_same_searches():
    assert take(3, generated(20, 7)) == take(3, generated(20, 7))
    assert take(3, generated(20, 7)) != take(3, generated(20, 8))


def test_searches_have_their_size_and_no_document_twice():
    documents = [document for search in take(10, generated(100, 0)) for document in search.documents]
    assert len(documents) == 1000
    assert len(set(documents)) == 1000


def test_texts_are_of_many_scripts():
    text = "".join(search.query for search in take(200, generated(1, 0)))
    for letter in ("e", "ü", "я", "如", "空", "끓", "ك", "ै", "ท"):
        assert letter in text


def test_lengths_in_tokens_are_those_of_passages(demo_artefacts):
    tokenizer = Tokenizer.from_file(str(demo_artefacts / "tokenizer/1/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    documents = [document for search in take(40, generated(50, 3)) for document in search.documents]
    lengths = sorted(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(documents))
    assert 100 <= percentile(lengths, 50) <= 170
    assert 300 <= percentile(lengths, 95) <= 600
    assert lengths[0] >= 8


def test_searches_of_a_file_come_round(tmp_path):
    file = tmp_path / "searches.jsonl"
    file.write_text('{"query": "a", "documents": ["b", "c"]}\n\n{"query": "d", "documents": []}\n')
    assert [search.query for search in take(5, from_file(file))] == ["a", "d", "a", "d", "a"]


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"query": 1, "documents": []}', '{"query": "a", "documents": ["b", 2]}', "not json"]
)
def test_a_bad_file_is_refused_with_its_line(tmp_path, line):
    file = tmp_path / "searches.jsonl"
    file.write_text(f'{{"query": "a", "documents": ["b"]}}\n{line}\n' if line else "")
    with pytest.raises(ValueError, match=r"searches.jsonl:2" if line else "contains no searches"):
        next(from_file(file))


def test_percentiles_are_values_that_were_seen():
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([7.0], 50) == 7
    assert math.isnan(percentile([], 50))


def run_of(latencies_ms, errors=(), users=1):
    calls = [Call("search", n, latency, 100, "") for n, latency in enumerate(latencies_ms)]
    calls += [Call("search", 0, 1.0, 100, error) for error in errors]
    return Recording({"num_users": users}, calls)


def test_thresholds():
    good = run_of([100.0] * 99, errors=["ServerOverloadedError"])
    assert list(broken_thresholds(good, None, 0.01)) == []
    assert list(broken_thresholds(good, 100, 0.01)) == []
    (slow,) = broken_thresholds(good, 99, 0.01)
    assert slow == "p95 is 100 ms, the threshold 99 ms"
    (failing,) = broken_thresholds(good, None, 0.009)
    assert failing == "1.0% of the calls failed (1 ServerOverloadedError), the threshold is 0.9%"
    assert list(broken_thresholds(Recording(), None, 1.0)) == ["no call was finished"]


def test_only_failures_break_the_latency_threshold_too():
    assert len(list(broken_thresholds(run_of([], errors=["InferenceError"]), 1000, 0.5))) == 2


def test_throughput_counts_answered_pairs():
    recording = Recording(
        {}, [Call("search", 10.0, 500.0, 100, ""), Call("search", 11.0, 1000.0, 100, "InferenceError")]
    )
    assert recording.duration_s() == 2
    assert recording.pairs_per_s() == 50


def test_totals_are_what_happened_in_between():
    first = ModelState("m", 1.0, 10, 1, 100, 5, 1000, 2000, {"20": 5})
    last = ModelState("m", 9.0, 14, 1, 180, 7, 1500, 2600, {"20": 5, "40": 2})
    assert difference(first, last) == ModelState("m", 9.0, 4, 0, 80, 2, 500, 600, {"40": 2})
    assert Recording({}, [], [first, last]).totals() == [difference(first, last)]


def test_a_recording_survives_its_file(tmp_path):
    state = ModelState("m", 1.0, 1, 0, 1, 1, 1, 1, {"1": 1})
    recording = Recording({"seed": 0}, [Call("chat", 1.0, 2.0, 20, "")], [state])
    recording.save(tmp_path / "run.json")
    assert Recording.load(tmp_path / "run.json") == recording


def test_the_knee_has_most_throughput_for_its_latency():
    def step(users, interval_s, latency_ms):
        return Recording({"num_users": users}, [Call("search", n * interval_s, latency_ms, 100, "") for n in range(50)])

    sweep = [step(1, 0.10, 100), step(2, 0.06, 110), step(4, 0.05, 200), step(8, 0.05, 400)]
    assert knee(sweep) == 1
    assert knee([run_of([], errors=["InferenceError"]), Recording()]) is None


def test_a_report_stands_alone(tmp_path):
    write_report(tmp_path / "sweep.html", [run_of([100.0, 120.0]), run_of([150.0, 160.0], users=2)])
    write_report(tmp_path / "failed.html", [run_of([], errors=["ServerOverloadedError"])])
    sweep, failed = (tmp_path / "sweep.html").read_text(), (tmp_path / "failed.html").read_text()
    assert "(knee)" in sweep
    assert "ServerOverloadedError" in failed
    for page in (sweep, failed):
        assert "<svg" in page
        assert "src=" not in page
        assert "<script" not in page


def back_to_back(latency_s, calls):
    """One caller whose calls of 100 documents follow each other."""
    return Recording({"num_users": 1}, [Call("search", n * latency_s, latency_s * 1e3, 100, "") for n in range(calls)])


@pytest.mark.parametrize(("latency_s", "calls"), [(4.0, 10), (0.01, 5000), (60.0, 1)])
def test_throughput_is_flat_when_calls_are_longer_than_a_window(latency_s, calls):
    assert throughput(back_to_back(latency_s, calls)) == pytest.approx([100 / latency_s] * 30)


def test_throughput_counts_every_answered_pair_once():
    recording = run_of([700.0, 9_000.0, 2.0, 13_000.0, 450.0], errors=["RequestTimeoutError"] * 3)
    assert sum(throughput(recording)) * window_length_s(recording) == pytest.approx(500)


def test_the_report_leaves_out_models_without_requests(tmp_path):
    def state(model, at_s, requests):
        return ModelState(model, at_s, requests, 0, requests, requests, 5, 9, {"1": requests} if requests else {})

    states = [state("cross_encoder", at, at) for at in (0, 1, 2)] + [state("late_scorer", at, 0) for at in (0, 1, 2)]
    write_report(tmp_path / "report.html", [Recording({}, [Call("search", 0.0, 2000.0, 2, "")], states)])
    page = (tmp_path / "report.html").read_text()
    assert "cross_encoder" in page
    assert "late_scorer" not in page


@pytest.mark.parametrize(
    ("recording", "sentence"),
    [
        (Recording({"num_users": 1}), "No call was finished."),
        (run_of([10.0]), "No statistics of Triton were read"),
        (run_of([], errors=["ServerOverloadedError"]), "Failed calls"),
    ],
)
def test_a_report_of_a_poor_run_says_what_is_missing(tmp_path, recording, sentence):
    write_report(tmp_path / "report.html", [recording])
    assert sentence in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("draw", [draw_latency, draw_errors, draw_queue_and_compute])
def test_no_legend_lies_over_the_curves(draw):
    states = [ModelState("tokenizer", at, at, 0, at, at, at * 10, at * 20, {}) for at in range(5)]
    calls = [Call("search", n, 500.0, 100, "" if n % 2 else "ServerOverloadedError") for n in range(60)]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    draw(axes, Recording({}, calls, states))
    figure.draw_without_rendering()
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_queue_and_compute_are_drawn_of_the_models_inside_an_ensemble():
    def states(model):
        return [ModelState(model, at, at, 0, at, at, at * 10, at * 20, {}) for at in range(5)]

    axes = Figure().subplots()
    models = ["late_interaction", "reranker", "tokenizer", "cross_encoder"]
    draw_queue_and_compute(axes, Recording({}, [], [state for model in models for state in states(model)]))
    labels = {line.get_label() for line in axes.get_lines()}
    assert labels == {f"{model}: {part}" for model in ("tokenizer", "cross_encoder") for part in ("queue", "compute")}
    assert set(ENSEMBLES) == ensembles()


def ensembles():
    """The models of this project whose committed config has the platform of an ensemble."""
    configs = [*(ROOT / "model_repository").glob("*/config.pbtxt"), *TEMPLATES.glob("*/config.pbtxt")]
    return {config.parent.name for config in configs if 'platform: "ensemble"' in config.read_text()}


def test_errors_are_drawn_by_kind_over_time():
    calls = [Call("search", n, 100.0, 100, "") for n in range(61)]
    calls += [Call("search", 40 + n / 10, 1.0, 100, "ServerOverloadedError") for n in range(20)]
    axes = Figure().subplots()
    draw_errors(axes, Recording({}, calls))
    (line,) = axes.get_lines()
    assert line.get_label() == "ServerOverloadedError"
    times, rates = line.get_xdata(), line.get_ydata()
    assert sum(rates) * (times[1] - times[0]) == pytest.approx(20)
    assert all(39 < at < 43 for at, rate in zip(times, rates, strict=True) if rate)


def test_sweep_steps():
    assert counts("8,1,8") == [1, 8]
    with pytest.raises(Exception, match="start at 1"):
        counts("0,1")


def test_package_descriptions_make_sets_across_languages(tmp_path, monkeypatch, capsys):
    names = [f"tool-{number}" for number in range(200)]
    for language, line, body in (
        ("en", "reads and writes archives of kind", "It packs files of kind"),
        ("ru", "работает с архивами вида", "Программа упаковывает файлы вида"),
    ):
        more = "\n" + 40 * " a б"
        paragraphs = [
            f"Package: {name}\nDescription-md5: 0\nDescription-{language}: {line} {name}\n {body} {name}{more}"
            for name in names
        ]
        (tmp_path / f"Translation-{language}.bz2").write_bytes(bz2.compress("\n\n".join(paragraphs).encode()))
    english, russian = (str(tmp_path / f"Translation-{language}.bz2") for language in ("en", "ru"))
    monkeypatch.setattr("sys.argv", ["package_descriptions.py", english, russian, "--out", str(tmp_path)])
    package_descriptions.main()
    assert capsys.readouterr().out.count("next: triton-rerank eval --reranking") == 2
    asked = [name for name in names if package_descriptions.held_out(name)]
    for file, query, document in (
        ("to-english", "работает с архивами вида", "It packs files of kind"),
        ("from-english", "reads and writes archives of kind", "Программа упаковывает файлы вида"),
    ):
        collection = load_reranking(tmp_path / f"{file}.jsonl", None)
        rows = [json.loads(line) for line in (tmp_path / f"{file}.jsonl").read_text().splitlines()]
        assert sorted(row["package"] for row in rows) == sorted(asked)
        for row, text in zip(rows, collection.queries.values(), strict=True):
            assert text == f"{query} {row['package']}"
            assert row["positive"][0].startswith(f"{document} {row['package']} ")
            assert len(row["negative"]) >= 7
            assert not [other for other in row["negative"] if f" {row['package']} " in other]
            assert all(other.startswith(document) for other in row["negative"])
