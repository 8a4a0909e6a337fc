"""Fine-tuning: losses by hand, pairs as they are served, resuming after a kill, a checkpoint that really is better."""

import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.cross_encoder import CrossEncoderDataCollator, losses
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support.tiny_decoder import tiny_decoder
from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank_build import BuildError, export
from triton_rerank_build.checkpoints.adapter import merged
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.cli.main import main
from triton_rerank_build.finetuning.data import Example, load
from triton_rerank_build.finetuning.settings import LOSSES, Settings
from triton_rerank_build.finetuning.train import LOSS_OF, MANIFEST, MEASURE, _rows, finetune, load_model
from triton_rerank_build.graphs.rows import encode_pair, template_layout
from triton_rerank_build.graphs.tokenizer import load_tokenizer
from triton_rerank_build.parity.texts import TRIPLES

PAIRS = [(query, document) for query, document, _ in TRIPLES]
GRADED = [Example("cats", [("red cats sleep", 2.0)], ["a", "b"]), Example("dogs", [("dogs bark", 1.0)], ["c"])]
SMALL = {"negatives": "given", "epochs": 4, "batch_size": 4, "num_negatives": 2, "dev_queries": 2, "dev_share": 0.2}
SMALL |= {"eval_every": 6, "save_every": 2, "patience": 50, "bf16": False}


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small gain nothing from a second one, and wait for it where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path):
    return str(tiny_checkpoint(tmp_path / "tiny", "xlm-roberta", num_hidden_layers=2))


@pytest.fixture
def json_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = []
    for index, (query, document, other) in enumerate(TRIPLES):
        others = [other, TRIPLES[index - 1][1], TRIPLES[index - 2][1]]
        rows.append(json.dumps({"query": query, "positive": document, "negatives": others}, ensure_ascii=False))
    path.write_text("\n".join(rows) + "\n")
    return path


def softplus(values):
    return np.log1p(np.exp(values))


def log_softmax(values):
    return values - np.log(np.exp(values).sum())


def by_hand(loss, lists):
    """The formulas of the papers; of each list the logits, the relevant document first, and its relevance."""
    if loss == "infonce":
        return np.mean([-log_softmax(logits)[0] for logits, _ in lists])
    if loss == "bce":
        return np.mean(np.concatenate([[softplus(-logits[0]), *softplus(logits[1:])] for logits, _ in lists]))
    if loss == "mse":
        scores = [1 / (1 + np.exp(-logits)) for logits, _ in lists]
        return np.mean(np.concatenate([[(score[0] - 1) ** 2, *score[1:] ** 2] for score in scores]))
    if loss == "ranknet":
        return np.mean(np.concatenate([softplus(logits[1:] - logits[0]) for logits, _ in lists])) / np.log(2)
    targets = [np.exp([relevance, *[0.0] * (len(logits) - 1)]) for logits, relevance in lists]
    return np.mean([-(t / t.sum() * log_softmax(x)).sum() for t, (x, _) in zip(targets, lists, strict=True)])


CLASSES = {
    "bce": losses.BinaryCrossEntropyLoss,
    "mse": losses.MSELoss,
    "ranknet": losses.RankNetLoss,
    "listnet": losses.ListNetLoss,
    "infonce": losses.MultipleNegativesRankingLoss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_sentence_transformers_with_their_values(name, tiny):
    settings = Settings(loss=name, lora_rank=0, num_negatives=2)
    model = load_model(resolve_checkpoint(tiny), settings)
    loss = LOSS_OF[name](model)
    assert isinstance(loss, CLASSES[name])
    columns = CrossEncoderDataCollator(model.preprocess)(list(_rows(GRADED, settings)))
    labels = columns.pop("label", None)
    found = loss(list(columns.values()), labels)
    lists = []
    for item in GRADED:
        # The list of two has its negative twice in InfoNCE, whose lists are of one length.
        documents = [item.relevant[0][0], *item.negatives, *(item.negatives if name == "infonce" else [])][:3]
        logits = model.predict([(item.query, document) for document in documents])
        lists.append((np.asarray(logits, np.float64), item.relevant[0][1]))
    assert found.item() == pytest.approx(by_hand(name, lists), rel=1e-5)
    found.backward()
    with torch.no_grad():  # a step against the gradient makes it smaller
        for parameter in model.parameters():
            parameter.add_(torch.zeros(()) if parameter.grad is None else parameter.grad, alpha=-1e-3)
    assert loss(list(columns.values()), labels) < found


def test_lists_are_drawn_from_the_hardest_anew_for_each_epoch():
    example = Example("q", [("a", 2.0)], list(map(str, range(100))))
    drawn = list(_rows([example], Settings(loss="listnet", num_negatives=3, epochs=5)))
    assert [row["labels"] for row in drawn] == [[2.0, 0.0, 0.0, 0.0]] * 5
    assert all(row["documents"][0] == "a" and {*map(int, row["documents"][1:])} <= {*range(12)} for row in drawn)
    assert len({tuple(row["documents"]) for row in drawn}) > 1


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_pairs_and_logits_are_those_that_are_served(tmp_path, family):
    checkpoint = resolve_checkpoint(str(tiny_checkpoint(tmp_path / family, family)))
    model = load_model(checkpoint, Settings(lora_rank=0))
    reference = AutoModelForSequenceClassification.from_pretrained(checkpoint.folder).eval()
    query, document, _ = TRIPLES[0]
    tokenizer = load_tokenizer(checkpoint)
    pair = encode_pair(
        tokenizer, template_layout(tokenizer, 0, token_types=family == "bert"), query, document * 9, length=LIMIT
    )
    assert len(pair) == LIMIT
    inputs = {"input_ids": torch.tensor([pair.ids]), "attention_mask": torch.ones(1, LIMIT, dtype=torch.long)}
    if family == "bert":
        inputs["token_type_ids"] = torch.tensor([pair.type_ids])
    with torch.inference_mode():
        expected = reference(**inputs).logits[0, 0].item()
    assert model.preprocess([(query, document * 9)])["input_ids"].tolist() == [pair.ids]
    assert model.predict([("short", "pair"), (query, document * 9)])[1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "lora_rank", "rate"), [("xlm-roberta", 4, 2e-2), ("bert", 0, 5e-3)])
def test_training_makes_a_better_checkpoint(json_lines, tmp_path, caplog, family, lora_rank, rate):
    tiny, out = tiny_checkpoint(tmp_path / "tiny", family, num_hidden_layers=2), tmp_path / "out"
    long = tmp_path / "long.jsonl"  # one query is longer than a pair, and is cut as it is served
    long.write_text(json_lines.read_text() + json.dumps({"query": "b " * LIMIT, "positive": "c", "negatives": "d"}))
    settings = Settings(**SMALL | {"lora_rank": lora_rank, "learning_rate": rate, "dev_queries": 20, "epochs": 12})
    caplog.set_level(logging.INFO, "triton_rerank_build")
    about = finetune(str(tiny), [long], out, settings, dev_paths=[json_lines])
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    cut = sum(len(tokenizer(*pair)["input_ids"]) > LIMIT for pair in PAIRS)
    assert f"of 11 queries {cut} have a relevant document that is cut at {LIMIT} tokens" in caplog.text
    assert about[MEASURE]["after"] > about[MEASURE]["before"]
    assert about == json.loads((out / MANIFEST).read_text())
    assert about["history"][-1]["loss"] < about["history"][0]["loss"]
    assert about["settings"]["learning_rate"] == rate
    assert list(about["data_sha256"]) == ["train", "dev"]
    written = [path for path in out.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in written)
    assert {path.name for path in written} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (out / "training").exists()
    scores = load_model(resolve_checkpoint(str(out)), Settings(lora_rank=0)).predict(PAIRS)
    if lora_rank:  # the adapter beside it is the whole difference
        base = AutoModelForSequenceClassification.from_pretrained(tiny)
        network = merged(base, out / "adapter").eval()
        queries, documents = map(list, zip(*PAIRS, strict=True))
        inputs = tokenizer(queries, documents, truncation="only_second", max_length=LIMIT, padding=True)
        with torch.inference_mode():
            logits = network(**{name: torch.tensor(inputs[name]) for name in ("input_ids", "attention_mask")}).logits
        np.testing.assert_allclose(scores, logits[:, 0], atol=1e-5)
    with pytest.raises(BuildError, match="holds a finished checkpoint"):
        finetune(str(tiny), [json_lines], out, settings)


KILL = """
import json, os, signal, sys, torch
from pathlib import Path
from triton_rerank_build.finetuning.settings import Settings
from triton_rerank_build.finetuning.train import finetune
torch.set_num_threads(1)
checkpoint, data, out, settings = sys.argv[1:]
finetune(checkpoint, [Path(data)], Path(out), Settings(**json.loads(settings)),
         on_step=lambda done, planned: done == 5 and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_a_killed_training_ends_where_an_unbroken_one_does(json_lines, tmp_path, tiny):
    fields = SMALL | {"lora_rank": 4, "negatives": "model", "dropout": 0.1, "learning_rate": 1e-2}
    whole = finetune(tiny, [json_lines], tmp_path / "whole", Settings(**fields))
    broken = tmp_path / "broken"
    command = [
        sys.executable,
        "-c",
        KILL,
        tiny,
        str(json_lines),
        str(broken),
        json.dumps(fields | {"max_minutes": 1e18}),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    with pytest.raises(BuildError, match="holds work with other data or settings"):
        finetune(tiny, [json_lines], broken, Settings(**fields | {"seed": 1}))
    # As if it had been killed while it saved: the state is written last.
    [newest] = broken.glob("training/*/checkpoint-4")
    (newest.parent / "checkpoint-6").mkdir()
    (newest.parent / "checkpoint-6" / "trained.safetensors").write_bytes(b"")
    (newest.parent / "checkpoint-6" / "trainer_state.json").write_bytes(b"")
    seen = []
    resumed = finetune(tiny, [json_lines], broken, Settings(**fields), on_step=lambda done, planned: seen.append(done))
    assert seen[0] == 5  # saved after step 4
    assert resumed[MEASURE] == whole[MEASURE]
    weights, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


@pytest.mark.slow
def test_training_is_not_repeated_when_it_was_killed_while_writing(json_lines, tmp_path, tiny):
    out, settings = tmp_path / "out", Settings(**SMALL | {"eval_every": 1, "patience": 2, "learning_rate": 1e-9})
    (out / "model.safetensors").mkdir(parents=True)  # nothing can be written there
    with pytest.raises(Exception, match=r"model\.safetensors|[Dd]irectory"):  # whatever safetensors raises
        finetune(tiny, [json_lines], out, settings)
    (out / "model.safetensors").rmdir()
    seen = []
    done = finetune(tiny, [json_lines], out, settings, on_step=lambda done, planned: seen.append(done))
    assert not seen
    assert [entry["step"] for entry in done["history"]] == [1, 2]  # stopped since nothing got better
    assert done[MEASURE]["step"] == 0


@pytest.mark.slow
def test_what_ends_below_its_start_is_not_kept(tmp_path, tiny, capsys, caplog):
    """Trained to rank held-out documents the wrong way round, the checkpoint stays what it was."""
    model = load_model(resolve_checkpoint(tiny), Settings(lora_rank=0))
    held_out, reverse, out = tmp_path / "held-out.jsonl", tmp_path / "reverse.jsonl", tmp_path / "out"
    with held_out.open("w") as right, reverse.open("w") as wrong:
        for query, document, other in TRIPLES:
            best, worst = sorted([document, other], key=lambda text: -model.predict([(query, text)])[0])
            right.write(json.dumps({"query": query, "positive": best, "negatives": worst}) + "\n")
            wrong.write(json.dumps({"query": query, "positive": worst, "negatives": best}) + "\n")
    caplog.set_level(logging.INFO, "triton_rerank_build")
    arguments = ["finetune", tiny, "--data", str(reverse), "--dev", str(held_out), "--negatives", "given"]
    arguments += ["--out", str(out), "--learning-rate", "0.05", "--fp32", "--batch-size", "4", "--epochs", "4"]
    assert main([*arguments, "--eval-every", "5", "--num-negatives", "1", "--dev-queries", "10"]) == 0
    assert "no step ranked them better" in capsys.readouterr().out
    messages = [record.getMessage().strip() for record in caplog.records if record.name == "triton_rerank_build"]
    assert "nDCG@10 of fewer than 30 held-out queries says little" in messages
    told = messages.index("no training can be better than 1: give harder queries with --dev")
    assert told < messages.index(next(text for text in messages if text.startswith("step 5 of 10")))
    about = json.loads((out / MANIFEST).read_text())
    assert about[MEASURE] == {"before": 1.0, "after": 1.0, "step": 0}
    assert about["history"][-1][MEASURE] < 1
    weights, again = (load_file(f"{folder}/model.safetensors") for folder in (tiny, out))
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_frozen_layers_stay_as_they_are(tmp_path, lora_rank):
    checkpoint = resolve_checkpoint(str(tiny_checkpoint(tmp_path / "tiny", "bert", num_hidden_layers=2)))
    model = load_model(checkpoint, Settings(lora_rank=lora_rank, freeze_layers=1, dropout=0.25))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(".layer.1." in name for name in names)
    assert any("classifier" in name for name in names)
    assert not any(".layer.0." in name or "embeddings" in name for name in names)
    assert {module.p for module in model.modules() if type(module) is torch.nn.Dropout} == {0.25}
    with pytest.raises(BuildError, match=r"freeze_layers is 2; the checkpoint has 2 layers"):
        load_model(checkpoint, Settings(freeze_layers=2))


@pytest.mark.slow
def test_training_ends_in_time(json_lines, tmp_path, tiny):
    settings = Settings(**SMALL | {"max_minutes": 1e-6, "eval_every": 1000})
    history = finetune(tiny, [json_lines], tmp_path / "out", settings)["history"]
    assert [entry["step"] for entry in history] == [1]  # it looks at the clock after a step, then evaluates


@pytest.mark.slow
def test_held_out_queries_are_those_of_no_training(json_lines, tmp_path, tiny):
    done = finetune(tiny, [json_lines], tmp_path / "out", Settings(**SMALL | {"max_steps": 1}))
    assert (done["num_queries"], done["num_dev_queries"]) == (len(TRIPLES) - 2, 2)
    one = tmp_path / "one.jsonl"
    one.write_text(json_lines.read_text().splitlines()[0])
    with pytest.raises(BuildError, match="nothing can be held out"):
        finetune(tiny, [one], tmp_path / "none", Settings(**SMALL))


@pytest.mark.slow
def test_command(json_lines, tmp_path, tiny, capsys):
    out = tmp_path / "out"
    arguments = ["finetune", tiny, "--data", str(json_lines), "--out"]
    assert main([*arguments, str(out), "--max-steps", "2", "--dev-share", "0.2", "--max-length", "64"]) == 0
    assert f"triton-rerank-build export {out}" in capsys.readouterr().out
    assert export(str(out), repository=tmp_path / "repository").checkpoint == "out"
    assert main([*arguments, str(json_lines)]) == 1
    assert "data.jsonl is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        *(("--loss", "hinge", "invalid choice"), ("--negatives", "some", "invalid choice")),
        *(("--epochs", "0", "0 must be 1 or more"), ("--mining-depth", "0", "0 must be 1 or more")),
        *(("--lora-rank", "-1", "-1 must be 0 or more"), ("--freeze-layers", "-1", "-1 must be 0 or more")),
        *(("--dropout", "1.0", "1.0 must be 0 or more, and below 1"), ("--max-minutes", "0", "0 must be above 0")),
        *(("--learning-rate", "-1", "-1 must be above 0"), ("--epochs", "few", "invalid")),
    ],
)
def test_options_are_checked(option, value, reason, capsys):
    with pytest.raises(SystemExit):
        main(["finetune", "demo", "--data", "d", "--out", "o", option, value])
    assert f"argument {option}: {reason}" in capsys.readouterr().err


def test_every_loss_is_offered():
    assert tuple(LOSS_OF) == LOSSES == tuple(CLASSES)


def test_data_with_the_same_names_is_told_apart_by_content(json_lines, tmp_path):
    other = tmp_path / "other" / json_lines.name
    other.parent.mkdir()
    other.write_text(json_lines.read_text().replace("bread", "wine"))
    assert load([json_lines], "train", Settings()) != load([other], "train", Settings())


def test_what_cannot_be_fine_tuned_is_refused_before_its_data_are_read(tmp_path):
    decoder = tiny_decoder(tmp_path / "decoder")
    with pytest.raises(BuildError, match="is of type 'qwen3'; fine-tuned are cross-encoders with one logit"):
        finetune(str(decoder), [tmp_path / "missing"], tmp_path / "out", Settings())
    labels = tiny_checkpoint(tmp_path / "labels", "bert", num_labels=2)
    with pytest.raises(BuildError, match="is a classifier of two labels"):
        finetune(str(labels), [tmp_path / "missing"], tmp_path / "out", Settings())
