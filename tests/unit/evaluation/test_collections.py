"""Collections in their published layouts, and BM25's words."""

import gzip
import json

import pytest

from triton_rerank import InvalidRequestError
from triton_rerank.evaluation.bm25 import Bm25, tokenize
from triton_rerank.evaluation.collections import (
    Files,
    beir_files,
    load_files,
    load_reranking,
    read_corpus,
    read_queries,
    sample,
)


def write_json_lines(path, *objects):
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects)
    data = lines.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def beir(folder, split="test"):
    (folder / "qrels").mkdir(parents=True)
    write_json_lines(folder / "queries.jsonl", {"_id": "1", "text": "zero"}, {"_id": "2", "text": "train only"})
    write_json_lines(
        folder / "corpus.jsonl", {"_id": "d1", "title": "Title", "text": "text"}, {"_id": "d2", "text": "b"}
    )
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t1\n")
    return folder


def test_beir(tmp_path):
    collection = load_files(beir_files(beir(tmp_path / "set"), "test"), None)
    assert collection.queries == {"1": "zero"}
    assert collection.documents == {"d1": "Title text", "d2": "b"}
    assert collection.qrels == {"1": {"d1": 1}}


def test_beir_splits(tmp_path):
    folder = beir(tmp_path / "set", split="dev")
    assert beir_files(folder, "dev").qrels == folder / "qrels" / "dev.tsv"
    with pytest.raises(InvalidRequestError, match=r"qrels/test.tsv does not exist; name a split that exists: dev"):
        beir_files(folder, "test")
    with pytest.raises(InvalidRequestError, match=r"neither qrels/test.tsv nor qrels.tsv exists; .* exists: dev"):
        beir_files(folder)
    (folder / "qrels.tsv").write_text("1\td1\t1\n")
    assert beir_files(folder).qrels == folder / "qrels.tsv"
    with pytest.raises(InvalidRequestError, match=r"qrels/train.tsv does not exist; leave out the split"):
        beir_files(folder, "train")
    (folder / "qrels" / "test.tsv").write_text("1\td1\t1\n")
    assert beir_files(folder).qrels == folder / "qrels" / "test.tsv"


def test_a_beir_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InvalidRequestError, match="nosuch: no such folder"):
        beir_files(tmp_path / "nosuch", "test")


def test_ms_marco(tmp_path):
    files = Files(tmp_path / "queries.dev.small.tsv", (tmp_path / "collection.tsv",), tmp_path / "qrels.dev.small.tsv")
    files.queries.write_text("1048585\twhat is paula deen's brother\n2\t Androgen receptor define\n")
    files.corpus[0].write_text("0\tThe presence of communication\n1\tThe Manhattan\tProject\n")
    files.qrels.write_text("1048585\t0\t1\t1\n2\t0\t0\t1\n")
    collection = load_files(files, None, wanted={"1"})
    assert next(iter(collection.queries.items())) == ("1048585", "what is paula deen's brother")
    assert collection.documents == {"1": "The Manhattan\tProject"}
    assert collection.qrels == {"1048585": {"1": 1}, "2": {"0": 1}}
    assert len(load_files(files, max_queries=1).queries) == 1


def test_a_larger_sample_contains_the_smaller_one_and_is_not_the_head_of_the_file():
    ids = [f"q{number}" for number in range(1000)]
    small, large = sample(ids, 10), sample(ids, 100)
    assert len(small) == 10
    assert small < large < sample(ids, None) == set(ids)
    assert sum(int(query_id[1:]) for query_id in large) / 100 == pytest.approx(500, abs=100)


def test_miracl_in_parts_and_gzipped(tmp_path):
    topics = tmp_path / "topics.miracl-v1.0-ar-dev.tsv"
    topics.write_text("0\tما هي المسألة الشرقية ؟\n")
    parts = [
        write_json_lines(tmp_path / f"docs-{part}.jsonl.gz", {"docid": f"7#{part}", "title": "ماء", "text": "نص"})
        for part in range(2)
    ]
    qrels = tmp_path / "qrels.miracl-v1.0-ar-dev.tsv"
    qrels.write_text("0\tQ0\t7#1\t1\n")
    collection = load_files(Files(topics, tuple(parts), qrels), None)
    assert list(collection.documents) == ["7#0", "7#1"]
    assert collection.qrels == {"0": {"7#1": 1}}


def test_c_mteb_reranking(tmp_path):
    path = write_json_lines(
        tmp_path / "dev.jsonl",
        {"query": "一", "positive": ["好"], "negative": ["坏", "差"]},
        {"query": "二", "positive": [], "negative": ["坏"]},
        {"query": "三", "positive": ["坏"], "negative": ["好"]},
    )
    collection = load_reranking(path, None)
    assert list(collection.queries.values()) == ["一", "三"]
    assert sorted(collection.documents.values()) == sorted(["好", "坏", "差"])
    assert sorted(collection.qrels["q1"].values()) == [0, 0, 1]
    assert set(collection.candidates["q3"]) == set(collection.qrels["q3"])
    assert len(load_reranking(path, 1).queries) == 1


def test_reranking_lines_with_other_names_and_without_others(tmp_path):
    path = write_json_lines(
        tmp_path / "dev.jsonl", {"query": "一", "pos": "好", "neg": "坏"}, {"query": "二", "positive": "差"}
    )
    collection = load_reranking(path, None, complete=False)
    texts = {text: key for key, text in collection.documents.items()}
    assert collection.qrels == {"q1": {texts["坏"]: 0, texts["好"]: 1}, "q2": {texts["差"]: 1}}
    with pytest.raises(InvalidRequestError, match=r"dev.jsonl:2: needs 'negative', a text or a list of texts"):
        load_reranking(path, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"_id": "1"}', ":2: needs 'text' or 'query', a text (its keys: _id)"),
        (b"{", ":2: not JSON"),
        (b"[]", ":2: not a JSON object"),
        (b'{"_id": "0", "text": "again"}', ":2: id 0 occurs a second time"),
        (b'{"_id": "1", "text": " "}', ":2: query 1 is empty"),
        (b'{"_id": "a b", "text": "x"}', ":2: id 'a b'"),
        (b'{"_id": "1", "text": "\xff"}', ":2: not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, reason):
    path = tmp_path / "queries.jsonl"
    path.write_bytes(b'{"_id": "0", "text": "good"}\n' + content + b"\n")
    with pytest.raises(InvalidRequestError) as raised:
        read_queries(path)
    assert f"{path}{reason}" in str(raised.value)


def test_a_tsv_line_without_tab_and_a_damaged_gzip_file(tmp_path):
    path = tmp_path / "collection.tsv"
    path.write_text("1 no tab\n")
    with pytest.raises(InvalidRequestError, match=r"collection.tsv:1: no tab"):
        read_corpus([path])
    damaged = write_json_lines(tmp_path / "docs.jsonl.gz", *({"_id": str(n), "text": "x"} for n in range(1000)))
    whole = damaged.read_bytes()
    for content in (whole[:-20], whole[:12] + b"\xff" * 30 + whole[42:], b"not gzip"):
        damaged.write_bytes(content)
        with pytest.raises(InvalidRequestError, match=r"docs.jsonl.gz:\d+: damaged gzip file"):
            read_corpus([damaged])


def test_byte_order_marks(tmp_path):
    path = tmp_path / "queries.tsv"
    path.write_text("1\tzero\n", encoding="utf-8-sig")
    assert read_queries(path) == {"1": "zero"}
    path.write_text("1\tzero\n", encoding="utf-16")
    with pytest.raises(InvalidRequestError, match=r"queries.tsv:1: UTF-16 text; save the file as UTF-8"):
        read_queries(path)


def test_a_judged_query_must_be_there(tmp_path):
    folder = beir(tmp_path / "set")
    (folder / "qrels" / "test.tsv").write_text("9\td1\t1\n")
    with pytest.raises(InvalidRequestError, match="1 of 1 judged queries are missing, the first is 9"):
        load_files(beir_files(folder, "test"), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat's naïve CAFÉ, v2.0_x", ["the", "cat", "s", "naïve", "café", "v2", "0", "x"]),
        ("深度学习 GPT模型", ["深度", "度学", "学习", "gpt", "模型"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("ทะเล", ["ทะ", "ะเ", "เล"]),
        ("猫", ["猫"]),
        ("ｆｕｌｌ ﬁne", ["full", "fine"]),
        ("كَتَبَ", ["كتب"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어는", ["한국", "국어", "어는"]),
        ("— !", []),
    ],
)
def test_words(text, words):
    assert tokenize(text) == words


def test_bm25_ranks_and_leaves_out_what_shares_no_word():
    documents = {"a": "cats and dogs", "b": "cats cats", "c": "birds", "e": ""}
    index = Bm25(documents)
    assert list(index.search("cats", 10)) == ["b", "a"]
    assert list(index.search("cats", 1)) == ["b"]
    assert index.search("fish", 10) == {}
    assert index.score("birds", ["a", "c"])["a"] == 0.0
    assert index.score("fish", ["a", "c"]) == {"a": 0.0, "c": 0.0}


def test_bm25_equals_the_formula():
    from math import log

    documents = {"a": "x y", "b": "x x z z", "c": "y"}
    found = Bm25(documents).search("x z", 10)
    mean_length = 7 / 3

    def term(tf, df, length):  # Lucene's BM25: Robertson's, without the constant factor k1 + 1
        return log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * length / mean_length))

    assert found == pytest.approx({"a": term(1, 2, 2), "b": term(2, 2, 4) + term(2, 1, 4)}, rel=1e-5)


def test_bm25_of_nothing():
    assert Bm25({"a": "", "b": "!"}).search("a", 5) == {}


def test_bm25_breaks_ties_as_the_measures_do():
    index = Bm25(dict.fromkeys(["a", "c", "b"], "same words"))
    assert list(index.search("same", 2)) == ["c", "b"]
