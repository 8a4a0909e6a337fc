"""The commands of NVIDIA's `trtexec` that build a plan and run it once per profile.

Every option is one that `trtexec --help` of TensorRT 10.5 lists, the release in Triton's container 24.10.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from triton_rerank_build._export import INPUT_NAMES
from triton_rerank_build.tensorrt.graph import GRAPH_FILE
from triton_rerank_build.tensorrt.profiles import Profile, shape_spec

PLAN_FILE = "model.plan"
SCRIPT_FILE = "build.sh"
LOG_FILE = "build.log"


def build_command(profiles: Sequence[Profile], timing_cache: Path) -> list[str]:
    """The command that builds `model.plan`, for the working folder.

    Strongly typed: each layer has the type that the graph says. A weakly typed network (`--fp16`) lets TensorRT choose
    per layer by speed, and LayerNorm, softmax and classifier are in fp32 because fp16 would overflow.
    """
    command = [
        "trtexec",
        f"--onnx=../{GRAPH_FILE}",
        f"--saveEngine={PLAN_FILE}",
        "--stronglyTyped",
        # fp32 is meant where the graph says it: TF32 rounds to 10 bits, and would save nothing in products this small.
        "--noTF32",
        "--skipInference",
        f"--timingCacheFile={timing_cache}",
    ]
    for index, profile in enumerate(profiles):
        command += [
            f"--profile={index}",
            f"--minShapes={shape_spec(profile.min_shape)}",
            f"--optShapes={shape_spec(profile.opt_shape)}",
            f"--maxShapes={shape_spec(profile.max_shape)}",
        ]
    return command


def check_command(index: int, profile: Profile) -> list[str]:
    """The command that runs the plan on the prepared rows of one profile, a full batch of its longest length."""
    inputs = ",".join(f"{name}:{input_file(index, name)}" for name in INPUT_NAMES)
    return [
        "trtexec",
        f"--loadEngine={PLAN_FILE}",
        f"--useProfile={index}",
        f"--shapes={shape_spec(profile.max_shape)}",
        f"--loadInputs={inputs}",
        f"--exportOutput={output_file(index)}",
        "--warmUp=0",
        "--duration=0",
        "--iterations=1",
    ]


def input_file(index: int, name: str) -> str:
    """Raw values of one input for one profile."""
    return f"check-{index}.{name}"


def output_file(index: int) -> str:
    """What trtexec writes for one profile."""
    return f"check-{index}.json"


def script(profiles: Sequence[Profile], timing_cache: Path) -> str:
    """A bash script of all commands, for a container that has `trtexec` and nothing of this project."""
    commands = [build_command(profiles, timing_cache)]
    commands += [check_command(index, profile) for index, profile in enumerate(profiles)]
    lines = [
        "#!/usr/bin/env bash",
        "# Written by `triton-rerank-build engine`: build model.plan from ../engine.onnx, then run it once",
        "# per profile. `triton-rerank-build engine --install` compares what it computed, and installs it.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        shlex.join(["mkdir", "-p", str(timing_cache.parent)]),
    ]
    written = [" \\\n  ".join(shlex.quote(word) for word in command) for command in commands]
    # The log of the build says which TensorRT and which GPU made the plan.
    written[0] += f" 2>&1 | tee {LOG_FILE}"
    return "\n".join([*lines, *written]) + "\n"


def read_log(text: str) -> tuple[str, str]:
    """TensorRT's version and the GPU's name, as trtexec logs them; "unknown" where it does not."""
    version = re.search(r"\[TensorRT v(\d+)\]", text)
    gpu = re.search(r"Selected Device: (.+)", text)
    return _dotted(version[1]) if version else "unknown", gpu[1].strip() if gpu else "unknown"


def _dotted(number: str) -> str:
    """100500 -> 10.5.0, as NV_TENSORRT_VERSION counts since TensorRT 10."""
    value = int(number)
    return f"{value // 10_000}.{value // 100 % 100}.{value % 100}"
