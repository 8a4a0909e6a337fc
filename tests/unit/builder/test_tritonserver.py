"""Error messages where the local server cannot run."""

import sys
from pathlib import Path

import pytest

from triton_rerank_build import MissingExtraError, ServerStartError
from triton_rerank_build.serving import tritonserver


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64"), ("win32", "AMD64")])
def test_another_platform_is_named_and_sent_to_the_container(system, machine):
    with pytest.raises(ServerStartError, match=f"this is {system} on {machine}: run it in NVIDIA's container"):
        tritonserver.check_platform(system, machine)


def test_a_missing_libpython_is_named_with_its_debian_package():
    with pytest.raises(ServerStartError, match=r"libpython3\.99\.so\.1\.0 is missing.*apt-get install libpython3\.99"):
        tritonserver.libpython_folder("3.99")


def test_this_pythons_own_libpython_is_found():
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in tritonserver.libpython_folder(version):
        assert (Path(folder) / f"libpython{version}.so.1.0").is_file()


def test_a_python_without_a_stub_is_told_which_have_one():
    root = tritonserver.find("openvino").root
    with pytest.raises(ServerStartError, match=r"no Python stub for 3\.99: use one of .*3\.10, 3\.11, 3\.12"):
        tritonserver.stub_of(root, "3.99")


def test_an_unknown_runtime_is_told_the_known_ones():
    with pytest.raises(ServerStartError, match="unknown runtime 'tensorflow': choose one of openvino, onnxruntime"):
        tritonserver.find("tensorflow")


def test_a_missing_package_is_answered_with_the_pip_command(monkeypatch):
    monkeypatch.setitem(tritonserver.RUNTIMES, "another", ("no_such_package", ()))
    with pytest.raises(
        MissingExtraError, match=r"'no_such_package' is not installed: pip install \"triton-rerank-build\[server\]\""
    ):
        tritonserver.find("another")


def test_a_numpy_that_another_package_brought_is_told_before_the_start(tmp_path, monkeypatch):
    about = tmp_path / "numpy-2.4.6.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.4.6\n")
    tritonserver.find("openvino")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServerStartError, match=r'numpy 2.4.6 is installed.* run: pip install "numpy<2"'):
        tritonserver.find("openvino")
