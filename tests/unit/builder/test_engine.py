"""`engine` with a stand-in for trtexec; tests/gpu runs the real one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import fake_trtexec
from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank_build import ParityError, RepositoryError, export, verify
from triton_rerank_build.errors import BuildError
from triton_rerank_build.repository.install import exclusive
from triton_rerank_build.repository.manifest import Manifest
from triton_rerank_build.tensorrt import trtexec
from triton_rerank_build.tensorrt.check import compare_plan, expected_logits, make_checks
from triton_rerank_build.tensorrt.install import build_engine, install
from triton_rerank_build.tensorrt.prepare import engine_script, prepare
from triton_rerank_build.tensorrt.profiles import Profile

COMMAND = [sys.executable, "-m", "triton_rerank_build.cli.main", "engine"]


@pytest.fixture
def repository(fp16_repository, tmp_path):
    """A copy that a test may change, for plans of three profiles."""
    target = tmp_path / "repository"
    shutil.copytree(fp16_repository("xlm-roberta"), target)
    config = target / "cross_encoder/configs/tensorrt.pbtxt"
    config.write_text(config.read_text().replace('profile: [ "0" ]', 'profile: [ "0", "1", "2" ]'))
    return target


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The stand-in, first on PATH; the cache is a fresh folder."""
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake_trtexec.__file__}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRITON_RERANK_CACHE", str(tmp_path / "cache"))
    return program


def test_a_shape_as_trtexec_takes_it():
    assert trtexec.shape_spec((64, 512)) == "input_ids:64x512,attention_mask:64x512"


def test_each_profile_is_checked_with_a_full_batch_of_different_rows(fp16_repository):
    repository = fp16_repository("roberta")
    profiles = (Profile((1, 16), (3, 32), (3, 48)), Profile((1, 49), (3, LIMIT), (11, LIMIT)))
    checks = make_checks(repository / "tokenizer/1/tokenizer.json", profiles, token_types=False)
    assert [check.inputs()["input_ids"].shape for check in checks] == [(3, 48), (11, LIMIT)]
    assert checks[1].attention_mask.sum(axis=1).max() == LIMIT
    rows = len(checks[1].input_ids)
    assert 3 < rows <= 8
    assert len({row.tobytes() for row in checks[1].input_ids}) == rows
    expected = expected_logits(repository / "cross_encoder/1/model.padded.onnx", checks)
    assert [logits.shape for logits in expected] == [(3, 1), (11, 1)]
    assert expected[1][0] == expected[1][rows]  # all rows, then the first again


def test_a_plan_that_computes_something_else():
    want = [np.array([[1.0], [2.0]], np.float32)]
    assert compare_plan(want, [want[0] + 0.01], 0.02) == pytest.approx(0.01, abs=1e-6)
    with pytest.raises(ParityError, match=r"profile 0: .* differ from the graph's by 0.03, tolerance 0.02"):
        compare_plan(want, [want[0] + 0.03], 0.02)
    with pytest.raises(ParityError, match="by nan"):
        compare_plan(want, [np.array([[1.0], [np.nan]], np.float32)], 0.02)


def test_a_plan_that_orders_two_pairs_otherwise():
    want, got = (np.array([[0.0], [second]], np.float32) for second in (0.025, 0.01))
    with pytest.raises(ParityError, match="profile 0: 1 pairwise orderings differ"):
        compare_plan([want], [got + np.array([[0.015], [0.0]], np.float32)], 0.02)


@pytest.mark.parametrize("text", ["", "[]", '[{"name": "logits", "values": [1, 2]}]', '[{"name": "logits"}]'])
def test_an_output_file_that_is_not_whole(tmp_path, text):
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(BuildError, match="does not hold 3 numbers named 'logits'"):
        trtexec.read_output(tmp_path / "out.json", 3)


def test_what_the_log_says_of_release_and_gpu():
    log = "&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18] # trtexec\n[I] Selected Device: NVIDIA A10\n"
    assert trtexec.read_log(log) == ("10.5.0", "NVIDIA A10")
    assert trtexec.read_log("") == ("unknown", "unknown")


def run(*arguments, **variables):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


@pytest.mark.parametrize("command", [prepare, build_engine, install])
def test_what_is_installed_is_read_under_the_lock_of_exports(repository, command):
    # Read before, it could be replaced by an export that ends between the two.
    (repository / "cross_encoder/1/model.padded.onnx").write_text("being replaced")
    with exclusive(repository), pytest.raises(RepositoryError, match="another export or engine build is writing into"):
        command(repository)


def test_a_dry_run_prints_the_script_and_writes_nothing(repository, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    done = run("--dry-run", "--repository", repository, "--timing-cache", tmp_path / "timings")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before
    lines = done.stdout.splitlines()
    assert f"mkdir -p {tmp_path}" in lines
    start = next(index for index, line in enumerate(lines) if line.startswith("trtexec"))
    assert [line.strip(" \\") for line in lines[start : start + 19]] == [
        "trtexec",
        "--onnx=../engine.onnx",
        "--saveEngine=model.plan",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
        f"--timingCacheFile={tmp_path}/timings",
        "--profile=0",
        "--minShapes=input_ids:1x16,attention_mask:1x16",
        "--optShapes=input_ids:128x16,attention_mask:128x16",
        "--maxShapes=input_ids:128x16,attention_mask:128x16",
        "--profile=1",
        "--minShapes=input_ids:1x17,attention_mask:1x17",
        "--optShapes=input_ids:128x48,attention_mask:128x48",
        "--maxShapes=input_ids:128x48,attention_mask:128x48",
        "--profile=2",
        "--minShapes=input_ids:1x49,attention_mask:1x49",
        "--optShapes=input_ids:128x80,attention_mask:128x80",
        "--maxShapes=input_ids:128x80,attention_mask:128x80 2>&1 | tee build.log",
    ]
    assert done.stdout.count("--exportOutput=") == 3
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.slow
def test_build_prove_install(repository, fake, tmp_path):
    done = run("--repository", repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny fp16 for NVIDIA L4, TensorRT 10.5.0; worst difference from the graph ")
    assert done.stdout.splitlines()[-1].endswith("--model-config-name=tensorrt")
    assert (tmp_path / "cache/tensorrt/timing.cache").is_file()
    assert not list((repository / "cross_encoder/1").glob("engine*"))
    manifest = verify(repository)
    assert "cross_encoder/1/model.plan" in manifest.artefacts
    assert manifest.engine.num_pairs == 3 * 128
    assert manifest.engine.profiles == ("1x16 128x16 128x16", "1x17 128x48 128x48", "1x49 128x80 128x80")
    assert Manifest.from_json(manifest.to_json()) == manifest

    again = run("--repository", repository, FAKE_TRTEXEC="fail")
    assert again.returncode == 0
    assert "holds this plan already: nothing to do" in again.stderr

    (repository / "cross_encoder/1/model.plan").write_text("damaged")
    assert build_engine(repository).engine.profiles == manifest.engine.profiles


@pytest.mark.slow
def test_in_three_steps_as_with_docker_compose(repository, fake):
    prepared = run("--prepare", "--repository", repository)
    script = Path(prepared.stdout.strip())
    assert script == repository / "cross_encoder/1/engine/build.sh"
    too_early = run("--install", "--repository", repository)
    assert too_early.returncode == 1
    assert "lacks model.plan, build.log, check-0.json" in too_early.stderr

    subprocess.run(["bash", script], check=True, capture_output=True)

    assert run("--install", "--repository", repository).returncode == 0
    assert run("--install", "--repository", repository, "--json").stdout == verify(repository).to_json()
    assert run("--prepare", "--repository", repository).stdout == ""
    assert run("--prepare", "--repository", repository, "--force").stdout == prepared.stdout


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("fail", "error: trtexec failed with status 1"),
        ("wrong", "error: profile 0: the plan's logits differ from the graph's by "),
        ("nan", "does not hold 128 numbers named 'logits'"),
    ],
)
def test_a_build_that_fails_leaves_the_old_installation(repository, fake, mode, words):
    build_engine(repository)
    before = verify(repository)
    done = run("--repository", repository, "--force", FAKE_TRTEXEC=mode)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert verify(repository) == before


@pytest.mark.slow
def test_a_new_export_takes_the_plan_away(repository, fake):
    build_engine(repository)
    prepare(repository, force=True)
    checkpoint = repository.parent / "other"
    export(str(tiny_checkpoint(checkpoint, "bert", seed=1)), repository=repository, precision="fp16", force=True)
    assert not (repository / "cross_encoder/1/model.plan").exists()
    assert verify(repository).engine is None
    with pytest.raises(RepositoryError, match="was exported again since"):
        install(repository)


def test_without_trtexec_the_remedy_is_named(repository):
    done = run("--repository", repository, PATH="/usr/bin:/bin")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: trtexec is not on PATH: ")
    assert f"`triton-rerank-build engine --prepare`, {repository}/cross_encoder/1/engine/build.sh in " in error
    assert "engine --install" in error
    assert not (repository / "cross_encoder/1/engine").exists()


def test_nothing_to_build_from(tmp_path, repository):
    with pytest.raises(RepositoryError, match="holds no complete installation; run: triton-rerank-build export"):
        engine_script(tmp_path)
    with pytest.raises(RepositoryError, match="is not prepared; run: triton-rerank-build engine --prepare"):
        install(repository)
    for name in ("cross_encoder", "tokenizer"):
        path = repository / name / "1/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "int8"}))
    with pytest.raises(RepositoryError, match="precision int8, which is for CPUs; run: triton-rerank-build export"):
        engine_script(repository)
    (repository / "cross_encoder/1/model.padded.onnx").unlink()
    with pytest.raises(RepositoryError, match="precision int8"):
        engine_script(repository)


def test_a_graph_that_changed_is_no_base_of_a_plan(repository):
    (repository / "cross_encoder/1/model.padded.onnx").write_bytes(b"other")
    with pytest.raises(
        RepositoryError, match=r"differs from its manifest:\n  cross_encoder/1/model.padded.onnx has 5 bytes"
    ):
        engine_script(repository)
