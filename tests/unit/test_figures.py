"""The committed figures are those that docs/figures.py draws from the committed tables."""

import re
import runpy

import pytest

from support import ROOT


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    assert runpy.run_path(str(ROOT / "docs/figures.py"))["main"](folder) == 0
    return folder


@pytest.mark.parametrize("name", ["architecture", "call", "knee"])
def test_the_committed_figure_is_the_drawn_one(drawn, name):
    texts = re.compile(r"<text[^>]*>([^<]*)</text>")
    now, committed = ((folder / f"{name}.svg").read_text() for folder in (drawn, ROOT / "docs/assets"))
    assert texts.findall(now)
    assert texts.findall(now) == texts.findall(committed)
    assert "#ffffff" not in committed  # no white sheet on a dark page
