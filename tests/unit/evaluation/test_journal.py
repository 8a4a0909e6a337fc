import json
import os

import pytest

from triton_rerank import InvalidRequestError
from triton_rerank.evaluation.journal import Journal, Reranked

SETTINGS = {"checkpoint": "demo", "max_length": None}
ONE = Reranked("q1", {"d1": 1.5, "文": -2.0}, 0.25, 40, 0)
TWO = Reranked("q2", {}, 0.125, 0, 0)


def journal(path, **changes):
    return Journal(path, {**SETTINGS, **changes})


def test_entries_are_read_back(tmp_path):
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
def test_an_incomplete_last_line_is_removed(tmp_path, cut):
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


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "nonsense",
        '{"query_id": "q1"}',
        '{"query_id": "q1", "scores": 3, "total_s": 1, "num_tokens": 1, "num_truncated": 0}',
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, line):
    path = tmp_path / "scores.jsonl"
    journal(path).close()
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InvalidRequestError, match=r"scores.jsonl:2: not a line of an evaluation"):
        journal(path)


def test_a_second_writer_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "scores.jsonl"
    with journal(path) as first:
        first.append(ONE)
        before = path.read_bytes()
        with pytest.raises(InvalidRequestError, match=r"scores.jsonl: another process is writing"):
            journal(path)
        assert path.read_bytes() == before
        first.append(TWO)
    with journal(path) as second:
        assert second.done == {"q1": ONE, "q2": TWO}


def test_entries_survive_a_power_loss(tmp_path, monkeypatch):
    """Every append ends with fsync of all that was written."""
    synced, fsync = [], os.fsync

    def recorded(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    path = tmp_path / "scores.jsonl"
    with journal(path) as first:
        monkeypatch.setattr(os, "fsync", recorded)
        for entry in (ONE, TWO):
            first.append(entry)
            assert synced[-1] == path.stat().st_size
    assert len(synced) == 2


def test_a_journal_of_release_0_1_has_no_digests(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(
        f'{{"settings": {json.dumps(SETTINGS)}}}\n'
        '{"query_id": "q1", "scores": {"d1": 1.5}, "total_s": 0.25, "num_tokens": 40, "num_truncated": 0}\n'
    )
    with journal(path) as first:
        assert first.done == {"q1": Reranked("q1", {"d1": 1.5}, 0.25, 40, 0, "")}
