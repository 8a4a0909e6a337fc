import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from triton_rerank import InvalidRequestError
from triton_rerank.ranking.batching import cut_rows, encode_cell, encode_cells, estimate_tokens
from triton_rerank.ranking.validation import MAX_MESSAGE_BYTES

texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=60).map(str.encode), min_size=1, max_size=80)


@given(texts)
def test_cells_are_what_tritonclient_writes(cells):
    tensor = np.array(cells, dtype=np.object_).reshape(-1, 1)
    assert encode_cells(cells) == serialize_byte_tensor(tensor).item()


@given(texts, st.integers(1, 40))
def test_every_row_travels_once_in_parts_of_similar_length(documents, max_rows):
    parts = cut_rows(b"query", documents, max_rows)
    rows = [row for part in parts for row in part.rows]
    assert sorted(rows) == list(range(len(documents)))
    lengths = [estimate_tokens(documents[row]) for row in rows]
    if len(parts) > 1:
        assert lengths == sorted(lengths, reverse=True)
    else:
        assert rows == sorted(rows)
    assert len(parts) == -(-len(documents) // max_rows)
    assert max(len(part.rows) for part in parts) <= max_rows
    for part in parts:
        assert part.documents == encode_cells([documents[row] for row in part.rows])
        assert part.queries == encode_cell(b"query") * len(part.rows)


def test_parts_are_as_even_as_their_number_allows():
    assert [len(part.rows) for part in cut_rows(b"q", [b"x"] * 33, 32)] == [17, 16]
    assert [len(part.rows) for part in cut_rows(b"q", [b"x"] * 100, 32)] == [25, 25, 25, 25]


def test_equal_lengths_keep_their_order():
    assert cut_rows(b"q", [b"aa", b"bb", b"cc"], 2)[0].rows == (0, 1)


def test_each_row_may_have_its_own_query():
    (part,) = cut_rows([b"long query", b"q"], [b"d1", b"d2"], 32)
    assert part.rows == (0, 1)
    assert part.queries == encode_cells([b"long query", b"q"])


def test_parts_respect_the_message_limit():
    megabyte = b"x" * 1_000_000
    parts = cut_rows(b"q", [megabyte] * 100, 100)
    assert sum(len(part.rows) for part in parts) == 100
    assert max(len(part.queries) + len(part.documents) for part in parts) < MAX_MESSAGE_BYTES
    assert len(parts) == 2


def test_a_large_query_counts_in_every_row():
    parts = cut_rows(b"q" * 10_000_000, [b"d"] * 32, 32)
    assert max(len(part.queries) + len(part.documents) for part in parts) < MAX_MESSAGE_BYTES


def test_a_text_that_no_message_holds_is_named():
    with pytest.raises(InvalidRequestError, match=r"documents\[1\] needs a message of 70,000,00"):
        cut_rows(b"q", [b"small", b"x" * 70_000_000], 32)


def test_nothing_makes_no_parts():
    assert cut_rows(b"q", [], 32) == []


@pytest.mark.parametrize(
    ("text", "num_tokens"),  # counted by XLM-R's tokenizer
    [
        ("Быстрая коричневая лиса перепрыгивает через ленивую собаку в солнечный день.", 23),
        ("Der schnelle braune Fuchs springt über den faulen Hund hinüber.", 19),
        ("तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है और भाग जाती है।", 25),
        ("빠른 갈색 여우가 게으른 개를 뛰어넘는다.", 15),
    ],
)
def test_token_estimates_are_near(text, num_tokens):
    assert estimate_tokens(text.encode()) == pytest.approx(num_tokens, rel=0.3)
