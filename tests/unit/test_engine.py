"""`engine` from the shapes to the installed plan, with a stand-in for trtexec; what needs a GPU is in tests/gpu."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import fake_trtexec
from tiny_models import FAMILIES, LIMIT, tiny_checkpoint
from triton_rerank_build import ParityError, RepositoryError, export, verify
from triton_rerank_build._errors import BuildError
from triton_rerank_build._manifest import Manifest
from triton_rerank_build.tensorrt.check import compare_plan, expected_logits, make_checks, read_trtexec_output
from triton_rerank_build.tensorrt.graph import prepare_graph, rewrite_for_tensorrt
from triton_rerank_build.tensorrt.install import build_engine, engine_script, install, prepare
from triton_rerank_build.tensorrt.profiles import (
    Profile,
    ServedShapes,
    make_profiles,
    read_served_shapes,
    served_buckets,
    shape_spec,
)
from triton_rerank_build.tensorrt.trtexec import read_log

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "model_repository"
COMMAND = [sys.executable, "-m", "triton_rerank_build._cli", "engine"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """An fp16 installation of each family."""
    folder = tmp_path_factory.mktemp("engine")
    for family in FAMILIES:
        export(str(tiny_checkpoint(folder / family, family)), repository=folder / f"{family}-served", precision="fp16")
    return {family: folder / f"{family}-served" for family in FAMILIES}


@pytest.fixture
def repository(repositories, tmp_path):
    """A copy that a test may change, for plans of three profiles."""
    target = tmp_path / "repository"
    shutil.copytree(repositories["xlm-roberta"], target)
    config = target / "cross_encoder/configs/tensorrt.pbtxt"
    config.write_text(config.read_text().replace('profile: [ "0" ]', 'profile: [ "0", "1", "2" ]'))
    return target


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """The stand-in, first on PATH; the cache is a fresh folder."""
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake_trtexec.__file__}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRITON_RERANK_CACHE", str(tmp_path / "cache"))
    return program


# --- shapes


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (1024, "1x16 64x192 64x1024"),
        (512, "1x16 64x160 64x512"),
        (8192, "1x16 64x320 64x8192"),
        (16, "1x16 64x16 64x16"),
    ],
)
def test_the_profile_of_the_committed_configs(max_length, expected):
    served = read_served_shapes(COMMITTED, max_length)
    assert (served.max_batch_size, served.num_profiles) == (64, 1)
    assert [str(profile) for profile in make_profiles(served)] == [expected]


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (1024, ["1x16 64x64 64x96", "1x97 64x192 64x256", "1x257 64x512 64x1024"]),
        (512, ["1x16 64x48 64x80", "1x81 64x128 64x192", "1x193 64x384 64x512"]),
        (8192, ["1x16 64x80 64x128", "1x129 64x320 64x512", "1x513 64x2048 64x8192"]),
        (80, ["1x16 64x16 64x16", "1x17 64x48 64x48", "1x49 64x80 64x80"]),
        (16, ["1x16 64x16 64x16"] * 3),
    ],
)
def test_buckets_are_shared_out_over_three_profiles(max_length, expected):
    served = replace(read_served_shapes(COMMITTED, max_length), num_profiles=3)
    assert [str(profile) for profile in make_profiles(served)] == expected


@pytest.mark.parametrize("max_length", [5, 16, 80, 100, 512, 1024, 8192])
@pytest.mark.parametrize("num_profiles", [1, 2, 3, 7])
def test_every_length_that_the_tokenizer_makes_fits_one_profile(max_length, num_profiles):
    served = read_served_shapes(COMMITTED, max_length)
    profiles = make_profiles(ServedShapes(served.max_batch_size, served.buckets, num_profiles))
    assert len(profiles) == num_profiles
    for bucket in served.buckets:
        fitting = [p for p in profiles if p.min_shape[1] <= bucket <= p.max_shape[1]]
        assert len(set(fitting)) == 1
        assert (fitting[0].min_shape[0], fitting[0].max_shape[0]) == (1, 64)
    for profile in profiles:
        assert profile.min_shape <= profile.opt_shape <= profile.max_shape


def test_buckets_are_those_of_the_tokenizer():
    assert served_buckets([32, 16, 64], 40) == (16, 32, 40)
    assert served_buckets([16, 32], 32) == (16, 32)


def test_a_shape_in_the_words_of_trtexec():
    assert shape_spec((64, 512)) == "input_ids:64x512,attention_mask:64x512"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("cross_encoder/configs/tensorrt.pbtxt", '"tensorrt_plan"', '"onnxruntime_onnx"', "expected 'tensorrt_plan'"),
        ("cross_encoder/configs/tensorrt.pbtxt", '"2"', '"3"', "names the profiles"),
        ("cross_encoder/configs/tensorrt.pbtxt", "max_batch_size: 64", "max_batch_size: many", "cannot be parsed"),
        ("tokenizer/config.pbtxt", '"buckets"', '"steps"', "no list of lengths"),
    ],
)
def test_a_config_that_does_not_say_the_shapes(repository, file, old, new, words):
    text = (repository / file).read_text()
    assert text.count(old) == 1
    (repository / file).write_text(text.replace(old, new))
    with pytest.raises(RepositoryError, match=words):
        engine_script(repository)


# --- graph


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rewritten_graph_computes_the_very_same(repositories, tmp_path, family):
    source = tmp_path / "copy"
    shutil.copytree(repositories[family] / "cross_encoder/1", source)
    path = prepare_graph(source)
    rewritten = onnx.load(str(path), load_external_data=False)
    assert "CumSum" not in {node.op_type for node in rewritten.graph.node}
    assert not [node for node in rewritten.graph.node if node.op_type == "Shape" and node.attribute]
    onnx.checker.check_model(str(path), full_check=True)
    fake_trtexec.refuse(rewritten)
    with pytest.raises(AssertionError):
        fake_trtexec.refuse(onnx.load(str(source / "model.onnx"), load_external_data=False))
    before, after = (onnxruntime.InferenceSession(str(p)) for p in (source / "model.onnx", path))
    for num_pairs, length in ((1, 1), (2, 17), (5, LIMIT)):
        # Every token there is, padding and separators in the middle too.
        ids = np.random.default_rng(length).integers(0, 200, (num_pairs, length), dtype=np.int32)
        mask = (np.arange(length) < length - np.arange(num_pairs)[:, None]).astype(np.int32)
        feed = {"input_ids": ids, "attention_mask": mask}
        np.testing.assert_array_equal(after.run(None, feed)[0], before.run(None, feed)[0])


def small_graph(node, output_shape):
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.INT32, ["num_pairs", "length"])],
        [helper.make_tensor_value_info("y", *output_shape)],
        [helper.make_tensor("axis", TensorProto.INT64, [], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_the_product_counts_every_position_of_the_longest_row():
    model = small_graph(helper.make_node("CumSum", ["x", "axis"], ["y"]), (TensorProto.INT32, None))
    assert rewrite_for_tensorrt(model) == {"CumSum": 1, "Shape": 0}
    x = np.random.default_rng(0).integers(0, 2, (2, 8192), dtype=np.int32)
    x[1] = 1
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.cumsum(axis=1))


@pytest.mark.parametrize(
    ("attributes", "expected", "replaced"),
    [({}, [3, 5], 0), ({"start": 1}, [5], 1), ({"start": 0, "end": 1}, [3], 1), ({"start": -1}, [5], 1)],
)
def test_a_part_of_a_shape(attributes, expected, replaced):
    model = small_graph(helper.make_node("Shape", ["x"], ["y"], **attributes), (TensorProto.INT64, None))
    assert rewrite_for_tensorrt(model)["Shape"] == replaced
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.run(None, {"x": np.zeros((3, 5), np.int32)})[0].tolist() == expected


@pytest.mark.parametrize("attributes", [{"exclusive": 1}, {"reverse": 1}])
def test_another_kind_of_sum_is_refused(attributes):
    model = small_graph(helper.make_node("CumSum", ["x", "axis"], ["y"], **attributes), (TensorProto.INT32, None))
    with pytest.raises(BuildError, match="neither exclusive nor reverse"):
        rewrite_for_tensorrt(model)


# --- rows and comparison


def test_each_profile_is_checked_with_a_full_batch_of_different_rows(repositories):
    profiles = (Profile((1, 16), (3, 32), (3, 48)), Profile((1, 49), (3, LIMIT), (11, LIMIT)))
    checks = make_checks(repositories["roberta"] / "tokenizer/1/tokenizer.json", profiles)
    assert [check.inputs()["input_ids"].shape for check in checks] == [(3, 48), (11, LIMIT)]
    assert checks[1].attention_mask.sum(axis=1).max() == LIMIT
    rows = len(checks[1].input_ids)
    assert 3 < rows <= 8
    assert len({row.tobytes() for row in checks[1].input_ids}) == rows
    expected = expected_logits(repositories["roberta"] / "cross_encoder/1/model.onnx", checks)
    assert [logits.shape for logits in expected] == [(3, 1), (11, 1)]
    assert expected[1][0] == expected[1][rows]  # all rows, then the first again


def test_a_plan_that_computes_something_else():
    want = [np.array([[1.0], [2.0]], np.float32)]
    assert compare_plan(want, [want[0] + 0.01], 0.02) == pytest.approx(0.01, abs=1e-6)
    with pytest.raises(ParityError, match=r"profile 0: .* differ from the graph's by 0.03, tolerance 0.02"):
        compare_plan(want, [want[0] + 0.03], 0.02)
    with pytest.raises(ParityError, match="by nan"):
        compare_plan(want, [np.array([[1.0], [np.nan]], np.float32)], 0.02)


@pytest.mark.parametrize("text", ["", "[]", '[{"name": "logits", "values": [1, 2]}]', '[{"name": "logits"}]'])
def test_an_output_file_that_is_not_whole(tmp_path, text):
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(BuildError, match="does not hold 3 numbers named 'logits'"):
        read_trtexec_output(tmp_path / "out.json", 3)


def test_what_the_log_says_of_release_and_gpu():
    log = "&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18] # trtexec\n[I] Selected Device: NVIDIA A10\n"
    assert read_log(log) == ("10.5.0", "NVIDIA A10")
    assert read_log("") == ("unknown", "unknown")


# --- the command


def run(*arguments, **variables):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


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
        "--optShapes=input_ids:64x16,attention_mask:64x16",
        "--maxShapes=input_ids:64x16,attention_mask:64x16",
        "--profile=1",
        "--minShapes=input_ids:1x17,attention_mask:1x17",
        "--optShapes=input_ids:64x48,attention_mask:64x48",
        "--maxShapes=input_ids:64x48,attention_mask:64x48",
        "--profile=2",
        "--minShapes=input_ids:1x49,attention_mask:1x49",
        "--optShapes=input_ids:64x80,attention_mask:64x80",
        "--maxShapes=input_ids:64x80,attention_mask:64x80 2>&1 | tee build.log",
    ]
    assert done.stdout.count("--exportOutput=") == 3
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_build_prove_install(repository, trtexec, tmp_path):
    done = run("--repository", repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("xlm-roberta fp16 for NVIDIA L4, TensorRT 10.5.0; worst difference from the graph ")
    assert done.stdout.splitlines()[-1].endswith("--model-config-name=tensorrt")
    assert (tmp_path / "cache/tensorrt/timing.cache").is_file()
    assert not list((repository / "cross_encoder/1").glob("engine*"))
    manifest = verify(repository)
    assert "cross_encoder/1/model.plan" in manifest.artefacts
    assert manifest.engine.num_pairs == 3 * 64
    assert manifest.engine.profiles == ("1x16 64x16 64x16", "1x17 64x48 64x48", "1x49 64x80 64x80")
    assert Manifest.from_json(manifest.to_json()) == manifest

    again = run("--repository", repository, FAKE_TRTEXEC="fail")
    assert again.returncode == 0
    assert "holds this plan already: nothing to do" in again.stderr

    (repository / "cross_encoder/1/model.plan").write_text("damaged")
    assert build_engine(repository).engine.profiles == manifest.engine.profiles


def test_in_three_steps_as_with_docker_compose(repository, trtexec):
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
        ("nan", "does not hold 64 numbers named 'logits'"),
    ],
)
def test_a_build_that_fails_leaves_the_old_installation(repository, trtexec, mode, words):
    build_engine(repository)
    before = verify(repository)
    done = run("--repository", repository, "--force", FAKE_TRTEXEC=mode)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert verify(repository) == before


def test_a_new_export_takes_the_plan_away(repository, trtexec):
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
    (repository / "cross_encoder/1/model.onnx").unlink()
    with pytest.raises(RepositoryError, match="precision int8"):
        engine_script(repository)


def test_a_graph_that_changed_is_no_base_of_a_plan(repository):
    (repository / "cross_encoder/1/model.onnx").write_bytes(b"other")
    with pytest.raises(RepositoryError, match=r"not as its manifest says:\n  cross_encoder/1/model.onnx has 5 bytes"):
        engine_script(repository)
