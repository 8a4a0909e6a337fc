"""README.md and CHANGELOG.md say what is true: code runs, commands parse, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import triton_rerank
from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^triton-rerank-build .+$", README, re.MULTILINE)


def test_the_call_runs(server):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace("localhost:8001", server.grpc_url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2"]
    assert done.stdout.splitlines()[0].endswith("Wash your hands often.")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    program, name, *_ = shlex.split(command)
    listed = subprocess.run(
        [Path(sys.executable).with_name(program), "--help"], capture_output=True, text=True, check=True
    )
    assert name in listed.stdout
    options = [word for word in shlex.split(command) if word.startswith("--")]
    usage = subprocess.run(
        [Path(sys.executable).with_name(program), name, "--help"], capture_output=True, text=True, check=True
    )
    assert all(option in usage.stdout for option in options)


def test_links_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "model_repository/README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_targets_are_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert {"demo", "serve", "test", "lint", "bench"} <= named <= targets


def test_folders_are_there():
    (folders,) = re.findall(r"## Folders\n\n```text\n(.*?)```", README, re.DOTALL)
    named = {line.split("/")[0] for line in folders.splitlines() if "/" in line.split()[0]}
    assert all((ROOT / name).is_dir() for name in named)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tops = {line.split("/")[0] for line in tracked.splitlines() if "/" in line}
    assert tops - {".ci"} <= named


def test_the_latest_release_in_the_changelog_is_this_version():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    # What is not released yet stands on top, and nowhere else.
    released = headings[1:] if headings[0] == "Unreleased" else headings
    assert released[0].split()[0] == triton_rerank.__version__
    assert "Unreleased" not in released
