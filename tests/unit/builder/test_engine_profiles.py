"""The optimization profiles of a plan, from the committed configs."""

import shutil
from dataclasses import replace

import pytest

from support import ROOT
from triton_rerank_build import RepositoryError
from triton_rerank_build.tensorrt.profiles import (
    ServedShapes,
    check_largest_batch,
    make_profiles,
    read_served_shapes,
    served_buckets,
)

COMMITTED = ROOT / "model_repository"


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (1024, "1x16 128x192 128x1024"),
        (512, "1x16 128x160 128x512"),
        (8192, "1x16 128x320 128x8192"),
        (16, "1x16 128x16 128x16"),
    ],
)
def test_the_profile_of_the_committed_configs(max_length, expected):
    served = read_served_shapes(COMMITTED, max_length)
    assert (served.max_batch_size, served.num_profiles) == (128, 1)
    assert [str(profile) for profile in make_profiles(served)] == [expected]


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (1024, ["1x16 128x64 128x96", "1x97 128x192 128x256", "1x257 128x512 128x1024"]),
        (512, ["1x16 128x48 128x80", "1x81 128x128 128x192", "1x193 128x384 128x512"]),
        (8192, ["1x16 128x80 128x128", "1x129 128x320 128x512", "1x513 128x2048 128x8192"]),
        (80, ["1x16 128x16 128x16", "1x17 128x48 128x48", "1x49 128x80 128x80"]),
        (16, ["1x16 128x16 128x16"] * 3),
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
        assert (fitting[0].min_shape[0], fitting[0].max_shape[0]) == (1, 128)
    for profile in profiles:
        assert profile.min_shape <= profile.opt_shape <= profile.max_shape


@pytest.mark.parametrize(("rows", "longest"), [(128, 1024), (64, 1448), (1, 11585)])
def test_a_plan_that_would_hold_too_many_attention_scores_is_refused(rows, longest):
    check_largest_batch(ServedShapes(rows, (16, longest), 1))
    with pytest.raises(RepositoryError, match=rf"{rows} rows of {longest + 1} tokens .* --max-length {longest} "):
        check_largest_batch(ServedShapes(rows, (16, longest + 1), 1))


def test_buckets_are_those_of_the_tokenizer():
    assert served_buckets([32, 16, 64], 40) == (16, 32, 40)
    assert served_buckets([16, 32], 32) == (16, 32)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("cross_encoder/configs/tensorrt.pbtxt", '"tensorrt_plan"', '"onnxruntime_onnx"', "expected 'tensorrt_plan'"),
        ("cross_encoder/configs/tensorrt.pbtxt", '[ "0" ]', '[ "1" ]', "names the profiles"),
        ("cross_encoder/configs/tensorrt.pbtxt", "max_batch_size: 128", "max_batch_size: many", "cannot be parsed"),
        ("tokenizer/config.pbtxt", '"buckets"', '"steps"', "no list of lengths"),
    ],
)
def test_a_config_without_the_shapes(tmp_path, file, old, new, words):
    repository = tmp_path / "repository"
    shutil.copytree(COMMITTED, repository, ignore=shutil.ignore_patterns("1"))
    text = (repository / file).read_text()
    assert text.count(old) == 1
    (repository / file).write_text(text.replace(old, new))
    with pytest.raises(RepositoryError, match=words):
        read_served_shapes(repository, 512)
