from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from support.fake_triton import rerank_purely
from triton_rerank.ranking.batching import Limits
from triton_rerank.ranking.chunking import count_parts, split

pieces = st.sampled_from(["word", "日本語。", "ends. ", " ", "\n\n", "x" * 30, "؟ "])
words = st.lists(pieces, max_size=120).map("".join)


@given(words, st.integers(1, 12))
def test_spans_cover_the_text_in_order(text, count):
    spans = split(text, 0, len(text), count)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (_, end), (start, _) in pairwise(spans):
        assert start <= end, "text between two parts was lost"
    assert len(spans) <= 1 + count * 1.5
    if len(text) > 1 and count > 1:
        assert all(end - start < len(text) for start, end in spans)


def test_spans_stay_inside_what_is_split():
    text = "a" * 100 + "b" * 100 + "c" * 100
    spans = split(text, 100, 200, 3)
    assert (spans[0][0], spans[-1][1]) == (100, 200)
    assert "".join(sorted(set("".join(text[a:b] for a, b in spans)))) == "b"


def test_parts_end_and_begin_between_sentences_and_overlap():
    text = "".join(f"Sentence number {number} is here. " for number in range(40))
    spans = split(text, 0, len(text), 4)
    assert 4 <= len(spans) <= 5
    for start, end in spans:
        assert text[start:].startswith("Sentence")
        assert text[:end].endswith(". ")
    assert all(before[1] > after[0] for before, after in pairwise(spans))


def test_count_parts_allows_for_the_overlap():
    assert count_parts(100, 100) == 1
    assert count_parts(101, 100) == 2
    assert count_parts(187.5, 100) == 2
    assert count_parts(188, 100) == 3


def test_chunk_mode_leaves_short_documents_whole():
    job, rounds = rerank_purely(["5", "short"], long_documents="chunk")
    assert len(rounds) == 1
    assert all(result.chunk is None for result in job.results())


def test_chunk_mode_cuts_until_nothing_is_truncated():
    # The fake counts a token for each byte, four times the estimate: the first cut is too coarse on purpose.
    text = "one two three. " * 400
    job, rounds = rerank_purely([text, "7"], long_documents="chunk")
    assert len(rounds) > 2
    results = job.results()
    assert [result.index for result in results] == [1, 0]
    cut = results[1]
    assert not cut.truncated
    assert cut.chunk.count > 10
    assert text[cut.chunk.start : cut.chunk.end] == cut.chunk.text
    assert cut.logit == -len(cut.chunk.text)  # the fake's best part is the shortest
    assert cut.num_tokens >= len(text)
    assert job.usage().num_truncated == 0
    assert job.usage().num_pairs > cut.chunk.count


def test_chunk_mode_truncates_nothing_at_a_small_max_length():
    job, _ = rerank_purely(["x" * 3000], long_documents="chunk", max_length=64)
    (result,) = job.results()
    assert not result.truncated
    assert result.chunk.count >= 3000 / 64


def test_the_best_part_gives_the_score():
    job, _ = rerank_purely(["9" + " " * 2100 + "8"], long_documents="chunk")
    (result,) = job.results()
    assert result.logit == 9.0
    assert result.chunk.index == 0


def test_asks_for_the_servers_default_length_only_without_max_length():
    assert rerank_purely(["x"], long_documents="chunk")[0].needs_info
    assert not rerank_purely(["x"], long_documents="chunk", max_length=128)[0].needs_info
    assert not rerank_purely(["x"])[0].needs_info
    assert Limits(rows=1).default_max_length == 512
