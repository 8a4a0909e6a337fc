"""The commands of NVIDIA's `trtexec` that build a plan and run it once per profile, and the files that they leave.

Every option is one that `trtexec --help` of TensorRT 10.5 lists; TensorRT 11, that of the images, still parses them.
A plan, and its timing cache, hold for one release of TensorRT.
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_build.contract import INPUT_NAMES, OUTPUT_NAME
from triton_rerank_build.errors import BuildError
from triton_rerank_build.tensorrt.graph import GRAPH_FILE
from triton_rerank_build.tensorrt.profiles import Profile

PLAN_FILE = "model.plan"
SCRIPT_FILE = "build.sh"
LOG_FILE = "build.log"


def build_command(profiles: Sequence[Profile], timing_cache: Path) -> list[str]:
    """The command that builds `model.plan`, for the working folder.

    Strongly typed: each layer has the type that the graph gives it. A weakly typed network (`--fp16`) lets TensorRT
    choose by speed, and LayerNorm, softmax and classifier are in fp32 because fp16 would overflow.
    """
    command = [
        "trtexec",
        f"--onnx=../{GRAPH_FILE}",
        f"--saveEngine={PLAN_FILE}",
        "--stronglyTyped",
        # What the graph keeps in fp32 stays fp32: TF32 rounds to 10 bits, and saves nothing in products this small.
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
    """The command that runs the plan on one profile's prepared rows, a full batch of its longest length."""
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
    """Name of the file with the raw values of one input for one profile."""
    return f"check-{index}.{name}"


def output_file(index: int) -> str:
    """Name of the file into which trtexec writes one profile's logits."""
    return f"check-{index}.json"


def script(profiles: Sequence[Profile], timing_cache: Path) -> str:
    """A bash script of all commands, for a container that has `trtexec` and nothing of this project."""
    commands = [build_command(profiles, timing_cache)]
    commands += [check_command(index, profile) for index, profile in enumerate(profiles)]
    lines = [
        "#!/usr/bin/env bash",
        "# Written by `triton-rerank-build engine`: build model.plan from ../engine.onnx, then run it once per",
        "# profile. `triton-rerank-build engine --install` compares its logits with the graph's and installs it.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        shlex.join(["mkdir", "-p", str(timing_cache.parent)]),
    ]
    written = [" \\\n  ".join(shlex.quote(word) for word in command) for command in commands]
    # `read_log` finds TensorRT's version and the GPU's name in this log.
    written[0] += f" 2>&1 | tee {LOG_FILE}"
    return "\n".join([*lines, *written]) + "\n"


def shape_spec(shape: tuple[int, int]) -> str:
    """A shape of both inputs as trtexec takes it: `input_ids:1x16,attention_mask:1x16`."""
    return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in INPUT_NAMES)


def read_output(path: Path, batch_size: int) -> npt.NDArray[np.float32]:
    """The logits [batch_size, 1] in the JSON file that `trtexec --exportOutput` wrote.

    Raises:
        BuildError: They are missing, or another number of them is there.
    """
    try:
        tensors = {tensor["name"]: tensor["values"] for tensor in json.loads(path.read_text(encoding="utf-8"))}
        # trtexec writes NaN as `nan` or `-nan`, which is not JSON: that is answered below like any other damage.
        logits = np.array(tensors[OUTPUT_NAME], np.float32).reshape(batch_size, 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{path} does not hold {batch_size} numbers named {OUTPUT_NAME!r}: {error!r}") from error
    return logits


def read_log(text: str) -> tuple[str, str]:
    """TensorRT's version and the GPU's name from the log of the build; "unknown" where the log lacks them."""
    version = re.search(r"\[TensorRT v(\d+)\]", text)
    gpu = re.search(r"Selected Device: (.+)", text)
    return _dotted(version[1]) if version else "unknown", gpu[1].strip() if gpu else "unknown"


def _dotted(number: str) -> str:
    """100500 -> 10.5.0, the encoding of NV_TENSORRT_VERSION since TensorRT 10."""
    value = int(number)
    return f"{value // 10_000}.{value // 100 % 100}.{value % 100}"
