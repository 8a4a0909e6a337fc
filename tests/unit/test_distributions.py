"""The two distributions: contents of wheels and sdists, dependencies, and an installation outside the checkout."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import triton_rerank
from support import ROOT
from support.tiny_models import tiny_checkpoint

CLIENT, BUILDER = "triton-rerank", "triton-rerank-build"
FOLDERS = {CLIENT: ROOT / "client", BUILDER: ROOT / "build"}


def tracked(folder):
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


def build(project, target):
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target)]
    subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Name -> (wheel, sdist)."""
    found = {}
    for name, folder in FOLDERS.items():
        target = tmp_path_factory.mktemp(name)
        build(folder, target)
        found[name] = (*target.glob("*.whl"), *target.glob("*.tar.gz"))
    return found


def names_in(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def metadata_of(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(archive.read(name).decode())


def test_the_clients_wheel_is_small_and_asks_for_two_packages(built):
    wheel, _ = built[CLIENT]
    assert wheel.stat().st_size < 200_000
    asked = metadata_of(wheel).get_all("Requires-Dist")
    assert {re.match(r"[\w-]+(\[\w+\])?", line).group() for line in asked if "extra ==" not in line} == {
        "numpy",
        "tritonclient[grpc]",
    }


def test_the_builder_asks_for_the_client_of_its_own_version(built):
    asked = metadata_of(built[BUILDER][0]).get_all("Requires-Dist")
    assert [line for line in asked if "extra ==" not in line] == [f"triton-rerank=={triton_rerank.__version__}"]
    versions = {metadata_of(wheel)["Version"] for wheel, _ in built.values()}
    assert versions == {triton_rerank.__version__}


def test_every_committed_file_of_the_packages_is_in_the_wheels(built):
    for name, folder, package in ((CLIENT, "client", "triton_rerank"), (BUILDER, "build", "triton_rerank_build")):
        committed = {path.removeprefix(f"{folder}/") for path in tracked(f"{folder}/{package}")}
        packed = {entry for entry in names_in(built[name][0]) if "/model_repository/" not in entry}
        assert packed == committed


def test_every_committed_file_of_the_model_repository_is_in_the_builders_wheel(built):
    committed = {path for path in tracked("model_repository") if not path.endswith(".md")}
    prefix = "triton_rerank_build/"
    packed = {name.removeprefix(prefix) for name in names_in(built[BUILDER][0]) if f"{prefix}model_repository/" in name}
    assert packed == committed


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_built_from_the_sdist_is_the_same(built, name, tmp_path):
    wheel, sdist = built[name]
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (project,) = tmp_path.iterdir()
    build(project, tmp_path / "again")
    (again,) = (tmp_path / "again").glob("*.whl")
    assert names_in(again) == names_in(wheel)
    archive = zipfile.ZipFile(again)
    licenses = {entry.rpartition("/")[2]: archive.read(entry) for entry in archive.namelist() if "/licenses/" in entry}
    # The demo adapter, trained on data of others, is in the builder's wheel.
    wanted = ["LICENSE", "NOTICE"] if name == BUILDER else ["LICENSE"]
    assert licenses == {file: (ROOT / file).read_bytes() for file in wanted}


@pytest.mark.slow
def test_the_wheels_work_outside_the_checkout(built, tmp_path):
    """Install the wheels in a new environment; third-party libraries come from the present one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    bin_folder = tmp_path / "venv" / "bin"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    wheels = [str(wheel) for wheel, _ in built.values()]
    python = str(bin_folder / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *wheels], check=True)
    # A plain path: .pth files below it, those of the editable installation among them, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*command):
        done = subprocess.run(
            [bin_folder / command[0], *command[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-c", "import triton_rerank_build as b, triton_rerank as c; print(b.__file__, c.__file__)")
    assert all(Path(path).is_relative_to(site) for path in where.split())
    assert "rerank" in run("triton-rerank", "--help")
    tiny_checkpoint(tmp_path / "tiny", "xlm-roberta")
    run("triton-rerank-build", "export", "tiny", "--repository", "repository")
    assert "is intact: tiny fp32" in run("triton-rerank-build", "verify", "--repository", "repository")
    laid_out = {path.relative_to(tmp_path / "repository").as_posix() for path in (tmp_path / "repository").rglob("*")}
    committed = {path.removeprefix("model_repository/") for path in tracked("model_repository")}
    assert {path for path in committed if not path.endswith(".md")} <= laid_out
