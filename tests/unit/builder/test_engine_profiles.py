"""The optimization profiles of a plan, from the committed configs."""

import shutil
from dataclasses import replace

import pytest

from support import ROOT
from triton_rerank_build import RepositoryError
from triton_rerank_build.tensorrt.profiles import ServedShapes, make_profiles, read_served_shapes, served_buckets

COMMITTED = ROOT / "model_repository"


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


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("cross_encoder/configs/tensorrt.pbtxt", '"tensorrt_plan"', '"onnxruntime_onnx"', "expected 'tensorrt_plan'"),
        ("cross_encoder/configs/tensorrt.pbtxt", '[ "0" ]', '[ "1" ]', "names the profiles"),
        ("cross_encoder/configs/tensorrt.pbtxt", "max_batch_size: 64", "max_batch_size: many", "cannot be parsed"),
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
