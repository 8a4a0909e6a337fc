"""The command `triton-rerank-build` as a process."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import triton_rerank_build
from support import ROOT
from support.tiny_models import tiny_checkpoint

COMMAND = [sys.executable, "-m", "triton_rerank_build.cli.main"]


def run(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "tiny", "bert")


def test_the_version_is_the_distributions():
    (version,) = re.findall('^version = "(.+)"$', (ROOT / "build/pyproject.toml").read_text(), re.M)
    assert run("--version").stdout == f"triton-rerank-build {version}\n"


@pytest.mark.slow
def test_export_verify_and_again(checkpoint, tmp_path):
    made = run("export", checkpoint, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    first, *files, following = made.stdout.splitlines()
    assert first.startswith("tiny fp32, up to 80 tokens; worst difference from PyTorch ")
    assert sorted(line.split()[0] for line in files) == [
        "model_repository/cross_encoder/1/model.onnx",
        "model_repository/cross_encoder/1/model.onnx.data",
        "model_repository/tokenizer/1/tokenizer.json",
    ]
    assert following == "next: triton-rerank-build serve --repository model_repository"
    steps = [line for line in made.stderr.splitlines() if line.startswith("[")]
    assert [line[:5] for line in steps] == [f"[{number}/6]" for number in range(1, 7)]
    assert len(re.findall(r"^ {6}[0-9.]+ s$", made.stderr, re.MULTILINE)) == 6

    verified = run("verify", "--json", cwd=tmp_path)
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["checkpoint"] == "tiny"
    assert run("verify", cwd=tmp_path).stdout.startswith("model_repository is intact: tiny fp32, made 20")

    again = run("export", checkpoint, "--json", cwd=tmp_path)
    assert again.returncode == 0
    assert "tiny is installed and intact: nothing to do" in again.stderr
    assert json.loads(again.stdout) == json.loads(verified.stdout)

    refused = run("export", checkpoint, "--max-length", "64", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].endswith("use --force to replace it")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["export", "./nothing"],
            "error: nothing: no such folder; a model on the Hugging Face hub is named OWNER/NAME",
        ),
        (["verify"], "error: model_repository is not a folder"),
        (["verify", "--repository", "."], "error: . holds no complete installation; run: triton-rerank-build export"),
    ],
)
def test_an_error_is_one_line_on_stderr(tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(words)
    assert "Traceback" not in done.stderr


def test_a_file_in_the_place_of_a_repository(checkpoint, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    done = run("export", checkpoint, "--repository", tmp_path / "occupied")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'occupied'} is a file, not a model repository\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["export"], ["export", "x", "--precision", "int4"]])
def test_wrong_usage(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: triton-rerank-build" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["verify", "--help"]])
def test_help_needs_none_of_the_heavy_packages(arguments):
    heavy = ["torch", "transformers", "onnx", "onnxruntime", "openvino", "numpy"]
    code = (
        "import sys\nfrom triton_rerank_build.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\nprint([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: triton-rerank-build" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(checkpoint, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "export", str(checkpoint), "--repository", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("[4/6]"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.rglob("export-*"))
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [("export", ["export", "demo"]), ("finetune", ["finetune", "demo", "--data", "d", "--out", "o"])],
)
def test_a_missing_extra_names_the_command_that_brings_it(tmp_path, extra, arguments):
    # -S leaves site-packages out; of it only this package and the core dependency numpy are there.
    for package in (triton_rerank_build, numpy):
        source = Path(package.__file__).parent
        (tmp_path / source.name).symlink_to(source)
    (tmp_path / "numpy.libs").symlink_to(Path(numpy.__file__).parents[1] / "numpy.libs")
    code = "import sys; sys.path.insert(0, '.'); from triton_rerank_build.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: huggingface_hub, onnx, ")
    assert done.stderr.endswith(f'not installed; run: pip install "triton-rerank-build[{extra}]"\n')


def test_the_public_names_are_sorted_and_there():
    assert triton_rerank_build.__all__ == sorted(triton_rerank_build.__all__)
    for name in triton_rerank_build.__all__:
        assert getattr(triton_rerank_build, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = triton_rerank_build.nothing
