import pytest

from triton_rerank import Document, InvalidRequestError
from triton_rerank.ranking.documents import text_reader

SHOE = {"title": "跑鞋", "brand": "Acme", "price": 59.9, "note": None, "text": "plain"}


def read(text_from, document):
    return text_reader(text_from)(document, "documents[0]")


def test_text_is_the_usual_field():
    assert read(None, SHOE) == "plain"
    assert read(None, "as it is") == "as it is"
    assert read(None, Document("own", id="7", metadata={"text": "other"})) == "own"


def test_a_template_is_filled_with_fields():
    assert read("{title} ({brand}), {price:.2f} EUR", SHOE) == "跑鞋 (Acme), 59.90 EUR"


def test_fields_are_joined_by_newlines_without_absent_ones():
    assert read(["title", "note", "missing", "price"], SHOE) == "跑鞋\n59.9"
    assert read(("brand",), SHOE) == "Acme"


def test_a_bare_field_name_is_that_field():
    assert read("text", SHOE) == "plain"
    assert read("title", SHOE) == "跑鞋"


def test_values_read_as_text_not_as_python():
    product = {"colours": ["red", "blue"], "sizes": (41, 42.5), "tags": {"b", "a"}, "note": None, "box": {"cm": 30}}
    assert read("{colours}; {sizes:.1f}; {tags}; {note}; {note:.2f}; {box}", product) == (
        "red, blue; 41.0, 42.5; a, b; ; ; cm: 30"
    )
    assert read(["colours", "note", "sizes"], product) == "red, blue\n41, 42.5"
    assert read("{colours!r} {{kept}}", product) == "['red', 'blue'] {kept}"


def test_a_function_may_do_anything():
    assert read(lambda document: document["title"] * 2, SHOE) == "跑鞋跑鞋"


def test_a_documents_fields_are_its_metadata_id_and_text():
    document = Document("body", id="42", metadata={"title": "head"})
    assert read("{id} {title}: {text}", document) == "42 head: body"
    assert read(["title", "text"], document) == "head\nbody"


@pytest.mark.parametrize("text_from", ["{title}", ["title"]])
def test_plain_texts_need_no_fields(text_from):
    assert read(text_from, "already text") == "already text"


@pytest.mark.parametrize(
    ("text_from", "document", "message"),
    [
        (
            "{title}: {size}",
            SHOE,
            r"documents\[0\] has no 'size', which text_from needs \(its keys: 'title', ",
        ),
        ("{title:.2f}", SHOE, r"documents\[0\]\['title'\] does not fit the template"),
        ("size", SHOE, r"documents\[0\] has none of \['size'\]"),
        ("{title:.2f}", {"title": ["a"]}, r"documents\[0\]\['title'\] does not fit the template"),
        (["size"], SHOE, r"documents\[0\] has none of \['size'\]"),
        (["title"], 3, r"documents\[0\] has no fields \(got int\)"),
        (lambda document: None, SHOE, r"text_from\(documents\[0\]\) is not text \(got None\)"),
    ],
)
def test_a_document_without_its_fields_is_named(text_from, document, message):
    with pytest.raises(InvalidRequestError, match=message):
        read(text_from, document)


@pytest.mark.parametrize(
    "text_from",
    [
        *("no field", "{}", "{0}", "{title.__class__}", "{title[0]}", "{title", [], [1], 5),
        *("{title:{price.__class__}<9}", "{title:{missing}}", "{title:>50000000}", "{price:.9999999f}", "{title!x}"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_at_once(text_from):
    with pytest.raises(InvalidRequestError, match="text_from"):
        text_reader(text_from)
