"""The cache folder does not grow without bound."""

import os

from triton_rerank_build.support.files import shrink_folder


def fill(folder, *files):
    folder.mkdir(exist_ok=True)
    for age, (name, size) in enumerate(files):
        (folder / name).write_bytes(b"x" * size)
        os.utime(folder / name, (1000 - age, 1000 - age))


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_least_recently_used_files_are_removed_first(tmp_path):
    fill(tmp_path, ("newest", 30), ("middle", 30), ("oldest", 30))
    shrink_folder(tmp_path, 90)
    assert left(tmp_path) == ["middle", "newest", "oldest"]
    shrink_folder(tmp_path, 89)
    assert left(tmp_path) == ["middle", "newest"]


def test_a_file_that_was_read_lately_counts_as_used(tmp_path):
    fill(tmp_path, ("written", 30), ("read", 30))
    os.utime(tmp_path / "read", (2000, 1))
    shrink_folder(tmp_path, 30)
    assert left(tmp_path) == ["read"]


def test_the_model_in_use_stays_whatever_its_size(tmp_path):
    fill(tmp_path, ("large", 100), ("small", 1))
    shrink_folder(tmp_path, 10)
    assert left(tmp_path) == ["large"]
    shrink_folder(tmp_path / "nothing", 10)
