"""What a fine-tuning learns from: BEIR folders, JSON lines, negatives from BM25 and from the model's own mistakes."""

import json

import pytest
import torch

from triton_rerank_build import BuildError
from triton_rerank_build.finetuning.data import Example, load, mine
from triton_rerank_build.finetuning.settings import Settings

GIVEN, BM25 = Settings(negatives="given"), Settings(mining_depth=10)


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    folder.mkdir()
    documents = {
        "d1": "red cats sleep",
        "d2": "red dogs bark",
        "d3": "blue cats swim",
        "d4": "red dogs bark",
        "d5": "no",
    }
    queries = {"q1": "red dogs", "q2": "cats"}
    for name, texts in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in texts.items())
        )
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td5\t0\nq2\td1\t1\n")
    return folder


def lines(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_query(paths, settings, split="train"):
    return {item.query: item for item in load(paths, split, settings)}


def test_json_lines_with_other_names(tmp_path):
    path = lines(tmp_path, {"query": "q", "pos": ["a", "b"], "neg": ["c"]})
    assert load([path], "train", BM25) == [Example("q", [("a", 1.0), ("b", 1.0)], ["c"])]


def test_lines_of_one_query_are_one_example(tmp_path):
    path = lines(
        tmp_path,
        {"query": "q", "positive": "a", "negatives": ["b", "c"]},
        {"query": "q", "positive": "b", "negatives": ["c", "d"]},
    )
    assert load([path], "train", GIVEN) == [Example("q", [("a", 1.0), ("b", 1.0)], ["c", "d"])]


def test_lines_without_negatives_get_documents_of_their_file(tmp_path):
    path = lines(
        tmp_path,
        {"query": "red dogs", "positive": "red dogs bark"},
        {"query": "red cats", "positive": ["red cats sleep"], "negative": "given alone"},
        {"query": "blue", "positive": "the sea is blue"},
    )
    found = by_query([path], BM25)
    assert found["red dogs"].negatives == ["red cats sleep"]
    assert found["red cats"].negatives == ["given alone"]
    assert "blue" not in found  # no other document shares a word with it
    with pytest.raises(BuildError, match=r"data.jsonl:1: needs 'negative'"):
        load([path], "train", GIVEN)


def test_negatives_from_bm25_leave_out_what_is_relevant(beir):
    found = by_query([beir], BM25)
    assert found["red dogs"].relevant == [("red dogs bark", 2.0)]
    # The judged one first; d4 has the relevant text under another id.
    assert found["red dogs"].negatives == ["no", "red cats sleep"]
    assert found["cats"].negatives == ["blue cats swim"]


def test_given_negatives_are_the_judged_ones(beir):
    assert [item.negatives for item in load([beir], "train", GIVEN)] == [["no"]]


def test_a_folder_with_splits_is_held_out_by_its_own(beir):
    (beir / "qrels").mkdir()
    (beir / "qrels.tsv").rename(beir / "qrels" / "train.tsv")
    (beir / "qrels" / "dev.tsv").write_text("q2\td1\t1\n")
    assert list(by_query([beir], BM25, "dev")) == ["cats"]
    assert len(load([beir], "train", BM25)) == 2
    (beir / "qrels" / "dev.tsv").unlink()
    with pytest.raises(BuildError, match=r"qrels/dev.tsv does not exist"):
        load([beir], "dev", BM25)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"query": "q", "negatives": []}', "data.jsonl:1: needs 'positive'"),
        ('{"query": "q", "positive": "a", "negatives": 3}', "data.jsonl:1: needs 'negative'"),
        ("{", "data.jsonl:1: not JSON"),
        ('{"query": "q", "positive": "a", "negatives": []}', "data.jsonl: no query"),
    ],
)
def test_bad_data_is_named(tmp_path, line, reason):
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(BuildError, match=reason):
        load([path], "train", GIVEN)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BuildError, match=r"none: No such file or directory; give BEIR folders"):
        load([tmp_path / "none"], "train", GIVEN)


def test_queries_without_another_document_are_no_data(tmp_path):
    path = lines(tmp_path, {"query": "q", "positive": "a"})
    with pytest.raises(BuildError, match=r"no query of .*data.jsonl has relevant and other documents"):
        load([path], "train", BM25)


def test_the_order_depends_on_the_seed_alone(tmp_path):
    path = lines(tmp_path, *({"query": str(n), "positive": "a", "negatives": "b"} for n in range(40)))
    order = [item.query for item in load([path], "train", GIVEN)]
    assert sorted(order, key=int) == [str(n) for n in range(40)] != order
    assert [item.query for item in load([path], "train", GIVEN)] == order
    assert [item.query for item in load([path], "train", Settings(negatives="given", seed=1))] != order


class Scorer:
    """Stands for the cross-encoder: `mine_hard_negatives` asks it for scores alone."""

    def __init__(self, scores):
        self.scores = scores

    def predict(self, pairs, **_):
        return torch.tensor([self.scores[document] for _, document in pairs])


def test_the_models_mistakes_come_first_but_none_above_the_relevant_document():
    scorer = Scorer({"right": 3.0, "also right": 1.5, "a": 1.0, "b": 2.0, "c": 0.5, "unjudged": 4.0})
    one = Example("q", [("right", 1.0)], ["a", "unjudged", "b", "c"])
    two = Example("q", [("right", 1.0), ("also right", 1.0)], ["a", "unjudged", "b", "c"])
    none = Example("q", [("right", 1.0)], ["unjudged"])
    assert [item.negatives for item in mine(scorer, [one, two, none])] == [["b", "a", "c"], ["a", "c"], ["unjudged"]]
