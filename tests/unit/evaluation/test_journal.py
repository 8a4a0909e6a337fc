import pytest

from triton_rerank import InvalidRequestError
from triton_rerank.evaluation.journal import Journal, Reranked

SETTINGS = {"checkpoint": "demo", "max_length": None}
ONE = Reranked("q1", {"d1": 1.5, "文": -2.0}, 0.25, 40, 0)
TWO = Reranked("q2", {}, 0.125, 0, 0)


def journal(path, **changes):
    return Journal(path, {**SETTINGS, **changes})


def test_what_was_kept_is_there_again(tmp_path):
    path = tmp_path / "scores.jsonl"
    with journal(path) as first:
        assert first.done == {}
        first.append(ONE)
    with journal(path) as second:
        assert second.done == {"q1": ONE}
        second.append(TWO)
    with journal(path) as third:
        assert third.done == {"q1": ONE, "q2": TWO}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_cut_by_a_kill_is_done_again(tmp_path, cut):
    path = tmp_path / "scores.jsonl"
    with journal(path) as first:
        first.append(TWO)
        first.append(ONE)
    path.write_bytes(path.read_bytes()[:-cut])
    with journal(path) as second:
        assert second.done == {"q2": TWO}
        second.append(ONE)
    with journal(path) as third:
        assert third.done == {"q1": ONE, "q2": TWO}


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "scores.jsonl"
    journal(path).close()
    with pytest.raises(InvalidRequestError, match=r"max_length was None, now 128"):
        journal(path, max_length=128)


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"query_id": "q1"}'])
def test_a_file_of_something_else_is_refused(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    journal(path).close()
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InvalidRequestError, match=r"scores.jsonl:2: no line of an evaluation"):
        journal(path)
