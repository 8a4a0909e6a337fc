"""The optimization profiles of a plan, from the configs of the repository that will serve it.

A plan runs only shapes inside one of its optimization profiles, and is tuned for one shape of each. Triton sends up to
`max_batch_size` rows of one of the tokenizer's buckets. The buckets are divided evenly among the profiles that
configs/tensorrt.pbtxt names, so that short rows get kernels of their own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from triton_rerank_build.errors import RepositoryError
from triton_rerank_build.repository.configs import read_config

CONFIG_NAME = "tensorrt"
# Rows times the square of their length: 128 rows of 1,024 tokens. With the 16 heads of the published networks that is
# 2^31 attention scores, and 28 GB for a batch (graphs.memory).
_MOST_SCORES = 128 * 1024**2


@dataclass(frozen=True)
class Profile:
    """One range of shapes; a shape is (num_pairs, length), the same for both inputs.

    Attributes:
        min_shape: One pair, the profile's shortest row.
        opt_shape: A full batch of the middle bucket; TensorRT chooses the kernels for it.
        max_shape: A full batch of the longest bucket.
    """

    min_shape: tuple[int, int]
    opt_shape: tuple[int, int]
    max_shape: tuple[int, int]

    def __str__(self) -> str:
        shapes = ("x".join(map(str, shape)) for shape in (self.min_shape, self.opt_shape, self.max_shape))
        return " ".join(shapes)


@dataclass(frozen=True)
class ServedShapes:
    """The shapes that the repository's configs let Triton send to a plan.

    Attributes:
        max_batch_size: Most rows of one batch.
        buckets: Padded lengths, ascending; the last one is the longest pair.
        num_profiles: Number of profiles that configs/tensorrt.pbtxt names.
    """

    max_batch_size: int
    buckets: tuple[int, ...]
    num_profiles: int


def read_served_shapes(repository: Path, max_length: int) -> ServedShapes:
    """Read the configs that `tritonserver --model-config-name=tensorrt` reads.

    Args:
        repository: A model repository.
        max_length: Longest pair of the installed checkpoint, from its manifest.

    Raises:
        RepositoryError: A config is missing, cannot be parsed, or lacks a needed field.
    """
    tokenizer, cross_encoder = (read_config(repository, model, CONFIG_NAME) for model in ("tokenizer", "cross_encoder"))
    if cross_encoder.platform != "tensorrt_plan":
        raise RepositoryError(
            f"{repository}/cross_encoder/configs/{CONFIG_NAME}.pbtxt has platform {cross_encoder.platform!r}, "
            "expected 'tensorrt_plan'"
        )
    profiles = [name for group in cross_encoder.instance_group for name in group.profile]
    if profiles != [str(index) for index in range(len(profiles))] or not profiles:
        raise RepositoryError(
            f"{repository}/cross_encoder/configs/{CONFIG_NAME}.pbtxt names the profiles {profiles}; "
            'instance_group must name them "0", "1" and so on'
        )
    steps = tokenizer.parameters["buckets"].string_value.split() if "buckets" in tokenizer.parameters else []
    if not steps or not all(step.isdigit() for step in steps):
        raise RepositoryError(f"{repository}/tokenizer/config.pbtxt has no list of lengths in its parameter `buckets`")
    return ServedShapes(cross_encoder.max_batch_size, served_buckets(map(int, steps), max_length), len(profiles))


def check_largest_batch(served: ServedShapes) -> None:
    """Refuse a plan whose largest batch has too many attention scores.

    Raises:
        RepositoryError: It has; the message says which length fits.
    """
    rows, length = served.max_batch_size, served.buckets[-1]
    longest = math.isqrt(_MOST_SCORES // rows)
    if length > longest:
        raise RepositoryError(
            f"a plan for {rows} rows of {length} tokens would hold every attention score of such a batch, over 28 GB; "
            f"run: triton-rerank-build export CHECKPOINT --precision fp16 --max-length {longest} --force, "
            "or lower max_batch_size in all models"
        )


def served_buckets(steps: Iterable[int], max_length: int) -> tuple[int, ...]:
    """The padded lengths that the tokenizer makes: its steps below `max_length`, and `max_length` itself."""
    return (*sorted(step for step in set(steps) if step < max_length), max_length)


def make_profiles(served: ServedShapes) -> tuple[Profile, ...]:
    """Divide the buckets among the profiles, without a gap between their ranges.

    With fewer buckets than profiles the last profile is repeated: Triton refuses a config that names a profile which
    the plan lacks.
    """
    buckets, rows = served.buckets, served.max_batch_size
    used = min(served.num_profiles, len(buckets))
    borders = [len(buckets) * index // used for index in range(used + 1)]
    profiles = []
    for start, end in pairwise(borders):
        # From one token above the profile before, so that no length falls between two.
        shortest = buckets[start - 1] + 1 if start else buckets[0]
        middle = buckets[(start + end) // 2]
        profiles.append(Profile((1, shortest), (rows, middle), (rows, buckets[end - 1])))
    return (*profiles, *[profiles[-1]] * (served.num_profiles - used))
