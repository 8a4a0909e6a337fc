"""The examples of Markdown pages: which block is the output of which, how they run, and when an output is the same."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from support.pages import blocks


@dataclass(frozen=True)
class Example:
    """A block of code and its expected output: the text block that follows it, if there is one."""

    page: Path
    language: str
    code: str
    output: str | None
    line: int


def sections(pages: Iterable[Path]) -> dict[tuple[Path, str], list[Example]]:
    """(page, heading) -> its examples. The examples of a section share their variables."""
    found: dict[tuple[Path, str], list[Example]] = {}
    for page in pages:
        of_page = blocks(page)
        for block, following in zip(of_page, [*of_page[1:], None], strict=True):
            if block.language == "text":
                continue
            is_output = following and following.language == "text" and following.line - block.end <= 2
            output = following.text if is_output else None
            example = Example(page, block.language, block.text, output, block.line)
            found.setdefault((page, block.section), []).append(example)
    return found


def run_python(code: str, namespace: dict[str, Any], page: Path, line: int = 0) -> str:
    """Run a block. Line numbers in a traceback are those of its page."""
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * line + code, page, "exec"), namespace)
    return printed.getvalue()


def run_bash(code: str, cwd: Path | None = None) -> str:
    """Run an example in a shell that finds this checkout's commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=cwd,
        env={**os.environ, "PATH": path, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def replaced(code: str, names: dict[str, str]) -> str:
    """`code` with each name of the page replaced by the one here."""
    return re.sub("|".join(map(re.escape, names)), lambda match: names[match[0]], code)


NUMBER = re.compile(r"\d+\.\d+")
TOLERANCE = 0.05


def assert_same_output(printed: str, expected: str) -> None:
    """The same output, whatever processor computed it.

    Numbers with a decimal point may differ by TOLERANCE: processors with bf16 units round logits. Everything else is
    equal, so the order of results is. `...` at the end of a line stands for its rest, alone on a line for any lines.
    """
    pattern = "".join(map(_line_pattern, expected.splitlines()))
    found = re.fullmatch(pattern, printed)
    assert found, f"printed:\n{printed}\nexpected:\n{expected}"
    for now, then in zip(found.groups(), NUMBER.findall(expected), strict=True):
        assert abs(float(now) - float(then)) <= TOLERANCE, f"{now} is not {then}; printed:\n{printed}"


def _line_pattern(line: str) -> str:
    if line == "...":
        return r"(?:.*\n)*?"
    start = line.removesuffix("...")
    fixed = [re.sub(r"(\\ )+", " +", re.escape(text)) for text in NUMBER.split(start)]
    return r"(\d+\.\d+)".join(fixed) + (r".*\n" if start != line else r"\n")
