"""The short form of the chaos benchmark: parts of three real servers die, no call is lost, no answer is wrong."""

import json
import shutil

import pytest

from benchmarks.chaos.__main__ import parse, run
from benchmarks.chaos.events import EVENTS
from benchmarks.chaos.model import Model, reference, searches_of
from benchmarks.variants import CROSS_ENCODER
from conftest import PATIENT

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_dead_tokenizer_and_broken_connections_lose_no_call(tiny_exports, tmp_path, capsys):
    tiny, searches = tiny_exports("bert", "fp32"), searches_of(20, documents=10)
    repository = shutil.copytree(tiny.repository, tmp_path / "repository")
    config = repository / CROSS_ENCODER
    config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "f32"').replace(*PATIENT[1:]))
    model = Model("tiny", repository, reference(tiny.checkpoint, searches))
    options = parse(["--out", str(tmp_path), "--short", "--minutes", "0", "--calm-s", "1"])
    events = [event for event in EVENTS if event.name in ("kill-tokenizer", "reset-all")]
    assert run([model], searches, events, options, own_shm=False) == 0
    told = json.loads((tmp_path / "chaos.json").read_text())
    assert [event["name"] for event in told["events"]] == ["kill-tokenizer", "reset-all"]
    assert {call[0] for call in told["calls"]} == {"client", "gateway"}
    assert {call[3] for call in told["calls"]} == {""}
    assert "lost=0 wrong=0 overload=0" in capsys.readouterr().out
    assert "kill-tokenizer" in (tmp_path / "chaos.svg").read_text()
