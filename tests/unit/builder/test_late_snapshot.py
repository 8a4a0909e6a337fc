"""The snapshot of late interaction's cache, without Triton: what is written is read, what is damaged is refused."""

import stat
import sys

import numpy as np
import pytest

from support.monitors import wait_until
from triton_rerank_build.late_interaction.repository import TEMPLATES

SETTINGS = {"manifest": "a" * 64, "vector_type": "int8"}


@pytest.fixture(scope="module")
def modules():
    """The modules `snapshot` and `vector_cache`, imported from the model's folder as Triton's stub does."""
    folder = str(TEMPLATES / "late_scorer/1")
    sys.path.append(folder)
    try:
        import snapshot
        import vector_cache

        yield snapshot, vector_cache
    finally:
        sys.path.remove(folder)
        for name in ("snapshot", "vector_cache"):
            sys.modules.pop(name, None)


@pytest.fixture
def entries(modules):
    _, vector_cache = modules
    generator = np.random.default_rng(9)
    shapes = [(5, 18, np.int8), (0, 16, np.float16), (32, 16, np.float16), (40, 18, np.int8)]
    return {
        bytes([row]) * 16: vector_cache.Encoded(
            generator.integers(0, 99, (count, width)).astype(dtype), row, row % 2 == 0
        )
        for row, (count, width, dtype) in enumerate(shapes)
    }


def fields(entries):
    return [
        (key, entry.vectors.dtype, entry.vectors.shape, entry.vectors.tobytes(), entry.num_tokens, entry.truncated)
        for key, entry in entries.items()
    ]


@pytest.fixture
def written(modules, entries, tmp_path):
    snapshot, _ = modules
    file = snapshot.Snapshot(tmp_path / "cache.snapshot", SETTINGS)
    assert file.write(entries) == file.path.stat().st_size
    return file


def test_what_is_written_is_read_in_the_same_order(modules, written, entries):
    found, size = written.read()
    assert fields(found) == fields(entries)
    assert size == written.path.stat().st_size
    assert stat.filemode(written.path.stat().st_mode) == "-rw-------"
    assert [path.name for path in written.path.parent.iterdir()] == ["cache.snapshot"]
    assert written.write({}) < size
    assert written.read()[0] == {}


def test_no_file_is_an_empty_cache(modules, tmp_path):
    assert modules[0].Snapshot(tmp_path / "none", SETTINGS).read() == ({}, 0)


def test_every_byte_that_changes_and_every_end_that_is_missing_is_noticed(modules, written):
    snapshot, _ = modules
    content = written.path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        written.path.write_bytes(changed)
        with pytest.raises(snapshot.SnapshotError):
            written.read()
    for end in range(0, len(content), 7):
        written.path.write_bytes(content[:end])
        with pytest.raises(snapshot.SnapshotError):
            written.read()
    written.path.write_bytes(content + b"\0")
    with pytest.raises(snapshot.SnapshotError):
        written.read()


@pytest.mark.parametrize("other", [{"manifest": "b" * 64}, {"vector_type": "fp16"}])
def test_a_file_of_another_model_is_refused(modules, written, other):
    snapshot, _ = modules
    with pytest.raises(snapshot.SnapshotError, match="another model, of other settings or of another release"):
        snapshot.Snapshot(written.path, SETTINGS | other).read()


def test_a_file_that_cannot_be_written_stays_as_it_was(modules, written, entries, monkeypatch):
    snapshot, _ = modules
    written.path.with_name("cache.snapshot.tmp").write_bytes(b"of a server that was killed while it wrote")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        written.write({})
    assert fields(written.read()[0]) == fields(entries)
    assert len(list(written.path.parent.iterdir())) == 1


def test_what_is_restored_is_older_than_what_is_there_and_never_more_than_fits(modules, entries):
    _, vector_cache = modules
    new = vector_cache.Encoded(np.zeros((5, 18), np.int8), 1, False)
    *_, last, longest = entries.values()
    cache = vector_cache.VectorCache(new.bytes + last.bytes + longest.bytes)
    cache.put({b"new": new})
    assert cache.restore(entries) == (2, 2)  # the last two, which were used most recently
    *_, third, fourth = entries
    assert list(cache.entries()) == [third, fourth, b"new"]
    assert (cache.bytes, cache.evicted, cache.encoded) == (cache.limit_bytes, 0, 1)
    assert cache.restore(entries) == (0, 2)


class Recorder:
    """What the keeper tells, instead of Triton's metrics and log."""

    def __init__(self):
        self.said = []

    def __getattr__(self, name):
        return lambda *arguments: self.said.append((name, *arguments))


def test_the_keeper_writes_while_the_cache_changes_and_a_second_one_takes_it_over(modules, entries, tmp_path):
    snapshot, vector_cache = modules
    file = snapshot.Snapshot(tmp_path / "cache.snapshot", SETTINGS)

    def keeper(interval_s):
        cache, recorder = vector_cache.VectorCache(1 << 20), Recorder()
        return cache, recorder, snapshot.SnapshotKeeper(file, cache, interval_s, recorder, recorder.info, recorder.warn)

    cache, recorder, first = keeper(0.01)
    cache.put(entries)
    wait_until(lambda: any(name == "written" for name, *_ in recorder.said))
    first.stop()
    assert not [said for said in recorder.said if said[0] == "warn"]
    content = file.path.read_bytes()
    again, recorder, second = keeper(1000)
    wait_until(lambda: recorder.said)
    assert fields(again.entries()) == fields(entries)
    assert recorder.said[0] == ("restored", len(entries), len(content))
    again.put({b"n" * 16: entries[bytes(16)]})
    second.stop()  # writes what is new
    assert len(file.read()[0]) == len(entries) + 1


def test_a_damaged_file_is_told_and_nothing_of_it_is_used(modules, written):
    snapshot, vector_cache = modules
    content = bytearray(written.path.read_bytes())
    content[-40] ^= 1  # the last vector
    written.path.write_bytes(content)
    cache, recorder = vector_cache.VectorCache(1 << 20), Recorder()
    snapshot.SnapshotKeeper(written, cache, 1000, recorder, recorder.info, recorder.warn).stop()
    assert cache.entries() == {}
    assert recorder.said == [("warn", f"{written.path} is not used: it is damaged; the cache starts empty")]
    assert written.path.read_bytes() == content  # nothing new to write
