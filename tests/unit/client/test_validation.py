import numpy as np
import pytest

from triton_rerank import Document, InvalidRequestError
from triton_rerank.ranking.documents import Inputs
from triton_rerank.ranking.rerank import RerankJob, RerankOptions
from triton_rerank.ranking.score import ScoreJob


def options(**given):
    return RerankOptions.check(given)


def job(query="query", documents=("document",), **given):
    checked = options(**given)
    return RerankJob(Inputs.read(query, documents, checked.text_from), checked)


@pytest.mark.parametrize("query", ["", " ", "\n\t ", "\u3000"])
def test_a_query_needs_words(query):
    with pytest.raises(InvalidRequestError, match="query is empty or only spaces"):
        job(query)


@pytest.mark.parametrize(("query", "kind"), [(None, "None"), (3, "int"), (b"bytes", "bytes"), (["a"], "list")])
def test_a_query_is_text(query, kind):
    with pytest.raises(InvalidRequestError, match=rf"query is not text \(got {kind}\)"):
        job(query)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (7, r"documents\[1\] is not text \(got int\)"),
        (None, r"documents\[1\] is not text \(got None\)"),
        (b"x", r"documents\[1\] is not text \(got bytes\)"),
        (["x"], r"documents\[1\] is not text \(got list\)"),
        ({"title": "x"}, r'documents\[1\] has no "text" \(its keys: \'title\'\)'),
        ({"text": 3}, r'documents\[1\]\["text"\] is not text \(got int\)'),
        (Document(text=None), r"documents\[1\].text is not text \(got None\)"),
        ("ab\ud800c", r"documents\[1\] has a lone surrogate U\+D800 at character 2"),
    ],
)
def test_a_document_that_is_no_text_is_named_by_its_index(document, message):
    with pytest.raises(InvalidRequestError, match=message):
        job(documents=["fine", document])


@pytest.mark.parametrize("documents", ["one text", b"bytes", {"text": "x"}, None, 5])
def test_documents_are_a_list(documents):
    with pytest.raises(InvalidRequestError, match="documents is not a list of documents"):
        job(documents=documents)


@pytest.mark.parametrize("document", ["", "   ", "nul \0 inside", "\ufeff", "e\u0301", "🧑‍🚀", "</s><s>"])
def test_odd_texts_are_documents(document):
    assert job(documents=[document])._inputs.texts == [document]


@pytest.mark.parametrize("documents", [("a", "b"), iter(["a", "b"]), np.array(["a", "b"]), {"a": 1, "b": 2}.keys()])
def test_any_collection_will_do(documents):
    assert job(documents=documents)._inputs.texts == ["a", "b"]


def test_more_than_10000_documents_are_refused():
    assert len(job(documents=["x"] * 10_000)._inputs.texts) == 10_000
    with pytest.raises(InvalidRequestError, match=r"documents holds 10001 documents, the limit is 10,000"):
        job(documents=["x"] * 10_001)
    with pytest.raises(InvalidRequestError, match=r"documents holds more than 10,000"):
        job(documents=("x" for _ in range(1_000_000_000)))


@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, "3"])
@pytest.mark.parametrize("name", ["top_n", "max_length"])
def test_counts_are_ints_from_1(name, value):
    with pytest.raises(InvalidRequestError, match=f"{name} is"):
        options(**{name: value})


@pytest.mark.parametrize("value", [-1, True, False, 1.0, "3", 2**31])
def test_the_length_of_a_query_is_an_int_from_0(value):
    assert options(query_max_length=0).query_max_length == 0
    with pytest.raises(InvalidRequestError, match="query_max_length is"):
        options(query_max_length=value)


def test_numpy_ints_are_ints():
    assert options(top_n=np.int64(3)).top_n == 3


@pytest.mark.parametrize("value", [-0.1, 1.1, True, "0.5", float("nan")])
def test_min_relevance_score_lies_between_0_and_1(value):
    with pytest.raises(InvalidRequestError, match="min_relevance_score is"):
        options(min_relevance_score=value)


@pytest.mark.parametrize(
    ("value", "words"),
    [(3, "is not text"), (b"x", "is not text"), ("a" * 4097, "has 4,097 characters"), ("\ud800", "surrogate")],
)
def test_an_instruction_is_a_text_of_limited_length(value, words):
    for refused in (lambda: options(instruction=value), lambda: ScoreJob([("q", "d")], instruction=value)):
        with pytest.raises(InvalidRequestError, match=f"instruction.*{words}"):
            refused()


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "interactive"])
def test_priority_is_a_whole_number_from_1_on(value):
    with pytest.raises(InvalidRequestError, match="priority is"):
        options(priority=value)
    with pytest.raises(InvalidRequestError, match="priority is"):
        ScoreJob([("query", "document")], priority=value)


def test_long_documents_has_two_ways():
    with pytest.raises(InvalidRequestError, match='pass "truncate" or "chunk"'):
        options(long_documents="split")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("ab", r"pairs\[1\] is not a pair"),
        (("a",), r"pairs\[1\] is not a pair"),
        (("", "b"), r"pairs\[1\]\[0\] is empty"),
        (("a", 3), r"pairs\[1\]\[1\] is not text \(got int\)"),
        (("a", "\udfff"), r"pairs\[1\]\[1\] has a lone surrogate U\+DFFF at character 0"),
    ],
)
def test_a_pair_that_is_none_is_named_by_its_index(pair, message):
    with pytest.raises(InvalidRequestError, match=message):
        ScoreJob([("a", "b"), pair])


def test_an_invalid_request_is_a_value_error():
    assert issubclass(InvalidRequestError, ValueError)


def test_refusals_never_quote_texts():
    with pytest.raises(InvalidRequestError) as caught:
        job(documents=["secret words \ud800"])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
