"""The pages are correct: the README's code runs, commands parse, links lead somewhere, versions agree."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import triton_rerank
from support import ROOT
from support.pages import anchors, blocks, headings, links

README = ROOT / "README.md"
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
PAGES = [ROOT / name for name in TRACKED if name.endswith(".md")]
CHINESE = {README: ROOT / "README.zh.md", ROOT / "docs/tutorial.md": ROOT / "docs/zh/tutorial.md"}
PROGRAMS = ("triton-rerank", "triton-rerank-build")


def commands():
    """The words of each triton-rerank command. Dated benchmarks are left out: they show the commands of their date."""
    found = []
    for page in PAGES:
        if page.parent.name == "benchmarks":
            continue
        shell = [block.text for block in blocks(page) if block.language in ("bash", "")]
        for line in "".join(shell).replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|(?=\s)", line.partition(" # ")[0]):
                if command.strip().startswith(PROGRAMS):
                    words = shlex.split(command)
                    found.append(pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words[:3])}"))
    return found


@cache
def usage(*command):
    program, *arguments = command
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments, "--help"], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_call_runs(server):
    (code,) = [block.text for block in blocks(README) if block.language == "python"]
    code = code.replace("localhost:8001", server.grpc_url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2"]
    assert done.stdout.splitlines()[0].endswith("Wash your hands often.")


@pytest.mark.parametrize("words", commands())
def test_commands_parse(words):
    program, name, *arguments = words
    assert re.search(rf"^    {name}\b", usage(program), re.MULTILINE), f"{program} has no command {name}"
    options = re.findall(r"(?<!\w)--[a-z][a-z-]*", usage(program, name))
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert option in options


def test_the_readme_shows_both_programs():
    shown = [words.values[0][0] for words in commands()]
    assert set(shown) == set(PROGRAMS)
    assert len(shown) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for path, fragment in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not fragment or fragment in anchors(target), f"{path}#{fragment}"


@pytest.mark.parametrize(("english", "chinese"), CHINESE.items(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_chinese_pages_have_the_same_code(english, chinese):
    folders = "Folders", "目录"  # the one block with descriptions
    codes, translated = (
        [(block.language, block.text) for block in blocks(page) if block.section not in folders]
        for page in (english, chinese)
    )
    assert len(codes) >= 5
    assert translated == codes
    assert len(headings(chinese)) == len(headings(english))
    for page, other in ((english, chinese), (chinese, english)):
        assert other in {(page.parent / path).resolve() for path, _ in links(page)}


@pytest.mark.parametrize("page", CHINESE.values(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_chinese_pages_lead_where_the_english_ones_do(page):
    english = next(key for key, value in CHINESE.items() if value == page)
    targets, translated = (
        {(of.parent / path).resolve() for path, _ in links(of) if path} - {page, english} for of in (english, page)
    )
    assert translated - set(CHINESE.values()) == targets - set(CHINESE) - set(CHINESE.values())


def test_targets_are_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z]+)", README.read_text(encoding="utf-8")))
    assert {"demo", "serve", "test", "lint", "bench"} <= named <= targets


def test_folders_are_there():
    (folders,) = [block.text for block in blocks(README) if block.section == "Folders"]
    named = {line.split("/")[0] for line in folders.splitlines() if "/" in line.split()[0]}
    assert all((ROOT / name).is_dir() for name in named)
    tops = {name.split("/")[0] for name in TRACKED if "/" in name}
    assert tops - {".ci"} <= named


def test_the_first_release_of_the_changelog_is_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", text, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    version, date = headings[1]
    assert version == triton_rerank.__version__
    assert date
