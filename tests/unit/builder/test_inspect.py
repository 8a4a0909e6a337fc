"""`inspect`, and the table of families in the builder's manual."""

import json
import re

from support import ROOT
from support.tiny_decoder import PROMPT, tiny_decoder
from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank_build.checkpoints.families import FAMILIES
from triton_rerank_build.cli.main import main


def inspected(capsys, checkpoint):
    assert main(["inspect", str(checkpoint), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def without_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


def test_an_encoder_is_described_without_its_weights(tmp_path, capsys):
    facts = inspected(capsys, without_weights(tiny_checkpoint(tmp_path / "tiny", "electra", num_labels=2)))
    assert (facts["family"], facts["longest pair"]) == ("electra", f"{LIMIT} tokens")
    assert facts["logit"] == "a classifier, label 1 less label 0, at the first token"
    assert facts["network"] == "this project's; on GPUs packed"


def test_a_decoder_is_described_with_its_instruction(tmp_path, capsys):
    facts = inspected(capsys, without_weights(tiny_decoder(tmp_path / "tiny")))
    assert facts["logit"] == "yes against no, at the last token"
    assert facts["instruction"] == PROMPT.instruction
    assert facts["network"] == "this project's; on GPUs padded"


def test_another_classifier_is_described(tmp_path, capsys):
    facts = inspected(capsys, without_weights(tiny_checkpoint(tmp_path / "tiny", "deberta-v2")))
    assert (facts["network"], facts["precisions"]) == ("transformers' own forward; on CPUs", "fp32")


def test_the_facts_fit_one_screen_and_a_refusal_says_why(tmp_path, capsys):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", "bert")
    assert main(["inspect", str(checkpoint)]) == 0
    assert 5 < len(capsys.readouterr().out.splitlines()) < 20
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(
        json.dumps(config | {"model_type": "new", "auto_map": {"AutoModel": "m.N"}})
    )
    assert main(["inspect", str(checkpoint)]) == 1
    assert "brings code of its own (m.py" in capsys.readouterr().err


def test_the_table_of_families_is_that_of_the_code():
    section = (ROOT / "build/README.md").read_text().split("## Which checkpoints run\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    named = {family: row for row in rows for family in re.findall(r"`([\w-]+)`", row[0])}
    assert set(FAMILIES) <= set(named)
    assert {name for name in named if "fp16" in named[name][2]} == set(FAMILIES)
    examples = " ".join(row[1] for row in rows)
    for family in FAMILIES.values():
        assert not family.examples or any(example in examples for example in family.examples)
