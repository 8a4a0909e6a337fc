"""The targets that remove files, run by the real make in a copy without .git."""

import os
import shutil
import subprocess

import pytest

from support import ROOT

GENERATED = [
    "model_repository/cross_encoder/1/model.onnx",
    "model_repository/cross_encoder/1/model.onnx.data",
    "model_repository/cross_encoder/1/model.padded.onnx",
    "model_repository/cross_encoder/1/model.reference.onnx",
    "model_repository/cross_encoder/1/model.plan",
    "model_repository/cross_encoder/1/manifest.json",
    "model_repository/tokenizer/1/tokenizer.json",
    "model_repository/tokenizer/1/manifest.json",
    "model_repository/late_encoder/1/model.onnx",
    "model_repository/reranker/123456789/checkpoint.txt",
]
TOOLS = [".venv/bin/python", ".ruff_cache/x", "report.html", "client/triton_rerank/__pycache__/x.pyc"]


@pytest.fixture
def checkout(tmp_path):
    """The committed files that matter, what an export and the tools left, and a cache."""
    listed = subprocess.run(
        ["git", "ls-files", "model_repository"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folder = tmp_path / "checkout"
    for name in ["Makefile", *listed.stdout.split()]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("client", "build", "tests", "loadtest"):
        (folder / name).mkdir()
    committed = files(folder)
    for name in (*GENERATED, *TOOLS, "../cache/demo.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder, committed


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def make(folder, target):
    environment = {**os.environ, "TRITON_RERANK_CACHE": str(folder.parent / "cache")}
    subprocess.run(["make", target], cwd=folder, env=environment, capture_output=True, check=True)


def test_clean_keeps_installed_models_and_the_cache(checkout):
    folder, committed = checkout
    make(folder, "clean")
    assert files(folder) == committed | set(GENERATED)
    assert (folder.parent / "cache").exists()


def test_clean_models_removes_what_export_installed_and_nothing_committed(checkout):
    folder, committed = checkout
    make(folder, "clean-models")
    assert files(folder) == committed | set(TOOLS)


def test_clean_cache_removes_the_cache_only(checkout):
    folder, committed = checkout
    make(folder, "clean-cache")
    assert files(folder) == committed | set(TOOLS) | set(GENERATED)
    assert not (folder.parent / "cache").exists()
