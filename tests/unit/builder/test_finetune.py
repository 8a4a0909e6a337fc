"""Fine-tuning: data, pairs, losses, resuming after a kill, and an improved checkpoint."""

import json
import math
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from support.tiny_models import LIMIT, tiny_checkpoint
from triton_rerank_build import BuildError, export
from triton_rerank_build import _finetune_data as data
from triton_rerank_build._finetune import MANIFEST, finetune
from triton_rerank_build._finetune_attention import NAME
from triton_rerank_build._finetune_losses import ABSENT, LOSS_OF
from triton_rerank_build._finetune_model import RankingModel
from triton_rerank_build._finetune_settings import LOSSES, Settings
from triton_rerank_build._finetune_train import evaluate, schedule
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.cli.main import main
from triton_rerank_build.parity.texts import TRIPLES

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.5, -1.0, 9.0]])
RELEVANCES = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, ABSENT]])


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small gain nothing from a second one, and wait for it where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def log_add(*values):
    return math.log(sum(math.exp(value) for value in values))


def softplus(value):
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("infonce", ((log_add(2, 1, 0) - 2) + (log_add(0.5, -1) - 0.5)) / 2),
        ("ranknet", ((softplus(-1) + softplus(-2)) / 2 + softplus(-1.5)) / 2),
        ("bce", ((softplus(-2) + softplus(1) + softplus(0)) / 3 + (softplus(-0.5) + softplus(-1)) / 2) / 2),
        (
            "mse",
            (
                ((1 / (1 + math.exp(-2)) - 1) ** 2 + (1 / (1 + math.exp(-1))) ** 2 + 0.25) / 3
                + ((1 / (1 + math.exp(-0.5)) - 1) ** 2 + (1 / (1 + math.exp(1))) ** 2) / 2
            )
            / 2,
        ),
        (
            "listnet",
            (
                (log_add(2, 1, 0) - (math.e * 2 + 1) / (math.e + 2))
                + (log_add(0.5, -1) - (math.exp(2) * 0.5 - 1) / (math.exp(2) + 1))
            )
            / 2,
        ),
    ],
)
def test_losses_by_hand(loss, expected):
    assert LOSS_OF[loss](LOGITS, RELEVANCES).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_absent_document_has_no_gradient(loss):
    logits = torch.zeros_like(LOGITS).requires_grad_()
    LOSS_OF[loss](logits, RELEVANCES).backward()
    assert logits.grad[1, 2] == 0
    assert logits.grad[0, 0] < 0  # the relevant document is lifted


def test_losses_are_all_offered():
    assert tuple(LOSS_OF) == LOSSES


def test_schedule_rises_and_falls():
    shares = [schedule(step / 10, 1 / 10, 0.2) for step in range(10)]
    assert shares[:2] == pytest.approx([0.5, 1.0])
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert 0 < shares[-1] < 0.2
    assert schedule(0, 1, 0.06) == 1
    assert schedule(0.999, 0.01, 0.06) == 0.01  # time is nearly up: the last step still moves


@pytest.fixture
def json_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = []
    for place, (query, document, other) in enumerate(TRIPLES):
        others = [other, TRIPLES[place - 1][1], TRIPLES[place - 2][1]]
        lines.append(json.dumps({"query": query, "positive": document, "negatives": others}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    folder.mkdir()
    documents = {
        "d1": "red cats sleep",
        "d2": "red dogs bark",
        "d3": "blue cats swim",
        "d4": "red dogs bark",
        "d5": "no",
    }
    queries = {"q1": "red dogs", "q2": "cats"}
    for name, texts in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in texts.items())
        )
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td5\t0\nq2\td1\t1\n")
    return folder


def test_json_lines_with_other_names(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"query": "q", "pos": ["a", "b"], "neg": ["c"]}\n')
    assert data.load([path], "bm25", 10) == [data.Example("q", (("a", 1.0), ("b", 1.0)), ("c",))]


def test_negatives_from_bm25_leave_out_what_is_relevant(beir):
    first, second = data.load([beir], "bm25", 10)
    assert first.relevant == (("red dogs bark", 2.0),)
    assert set(first.negatives) == {"no", "red cats sleep"}  # d4 has the relevant text under another id
    assert second.negatives == ("blue cats swim",)


def test_given_negatives_are_the_judged_ones(beir):
    assert [example.negatives for example in data.load([beir], "given", 10)] == [("no",)]


def test_a_folder_with_splits_is_held_out_by_its_own(beir):
    (beir / "qrels").mkdir()
    (beir / "qrels.tsv").rename(beir / "qrels" / "train.tsv")
    (beir / "qrels" / "dev.tsv").write_text("q2\td1\t1\n")
    assert [example.query for example in data.load([beir], "bm25", 10, "dev")] == ["cats"]
    assert len(data.load([beir], "bm25", 10)) == 2
    (beir / "qrels" / "dev.tsv").unlink()
    with pytest.raises(BuildError, match=r"neither qrels/dev.tsv nor qrels.tsv"):
        data.load([beir], "bm25", 10, "dev")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"query": "q", "negatives": []}', "data.jsonl:1: needs 'positive'"),
        ("{", "data.jsonl:1: not JSON"),
        ('{"query": "q", "positive": "a", "negatives": []}', "no query of"),
    ],
)
def test_bad_data_is_named(tmp_path, line, reason):
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(BuildError, match=reason):
        data.load([path], "given", 10)


def test_what_is_cut_is_counted(tmp_path):
    checkpoint = resolve_checkpoint(str(tiny_checkpoint(tmp_path / "tiny", "bert")))
    model = RankingModel(checkpoint, Settings(lora_rank=0))
    long = data.Example("q", (("b c d " * LIMIT, 1.0), ("b", 1.0)), ("c",))
    short = data.Example("q", (("b", 1.0),), ("c",))
    assert model.share_cut([short]) == 0
    assert model.share_cut([long, short]) == pytest.approx(1 / 3)


def test_split_keeps_every_query_once():
    examples = [data.Example(str(number), (("a", 1.0),), ("b",)) for number in range(40)]
    train, dev = data.split(examples, 0.1, 200, seed=1)
    assert (len(train), len(dev)) == (36, 4)
    assert sorted(example.query for example in train + dev) == sorted(example.query for example in examples)
    assert data.split(examples, 0.1, 200, seed=1) == (train, dev)
    assert data.sample(examples, 4, seed=1) == dev
    with pytest.raises(BuildError, match="nothing can be held out"):
        data.split(examples[:1], 0.1, 200, seed=1)


def test_lists_are_drawn_from_the_hardest():
    example = data.Example("q", (("a", 2.0),), tuple(map(str, range(100))))
    drawn = data.training_list(example, 3, random.Random(0))
    assert drawn.documents[0] == "a"
    assert drawn.relevances == (2.0, 0.0, 0.0, 0.0)
    assert all(int(document) < 12 for document in drawn.documents[1:])


def test_the_models_mistakes_come_first_but_none_above_the_relevant_document():
    scores = {"right": 3.0, "a": 1.0, "b": 2.0, "unjudged": 4.0}

    def score(pairs):
        return [scores[document] for _, document in pairs]

    example = data.Example("q", (("right", 1.0),), ("a", "unjudged", "b"))
    assert data.hardest_by(score, [example])[0].negatives == ("b", "a")
    only = data.Example("q", (("right", 1.0),), ("unjudged",))
    assert data.hardest_by(score, [only])[0].negatives == ("unjudged",)


@pytest.fixture(params=["bert", "roberta", "xlm-roberta"])
def tiny(tmp_path, request):
    return tiny_checkpoint(tmp_path / "tiny", request.param)


def test_pairs_and_logits_are_those_of_the_checkpoint(tiny):
    model = RankingModel(resolve_checkpoint(str(tiny)), Settings(lora_rank=0, bf16=False))
    assert model.max_length == LIMIT
    reference = AutoModelForSequenceClassification.from_pretrained(tiny).eval()
    query, document, _ = TRIPLES[0]
    tokenizer = model._tokenizer
    first, second = (tokenizer.encode(text * 9, add_special_tokens=False) for text in (query, document))
    first.truncate(LIMIT * 3 // 4)
    second.truncate(LIMIT - tokenizer.num_special_tokens_to_add(True) - len(first))
    pair = tokenizer.post_process(first, second)
    assert len(pair) == LIMIT
    inputs = {"input_ids": torch.tensor([pair.ids]), "attention_mask": torch.ones(1, LIMIT, dtype=torch.long)}
    if model.checkpoint.family == "bert":
        inputs["token_type_ids"] = torch.tensor([pair.type_ids])
    with torch.inference_mode():
        expected = reference(**inputs).logits[0, 0].item()
    pairs = [("short", "pair"), (query * 9, document * 9)]
    assert model.score(pairs)[1] == pytest.approx(expected, abs=1e-4)


def test_attention_learns_what_transformers_own_does(tiny):
    """The same gradients, with padding."""
    checkpoint = resolve_checkpoint(str(tiny))
    model = RankingModel(checkpoint, Settings(lora_rank=0, bf16=False))
    assert model.network.config._attn_implementation == NAME
    model.network.double()
    pairs = [(query, document) for query, document, _ in TRIPLES[:2]] + [("short", "pair")]
    gradients = []
    for attention in (NAME, "eager"):
        model.network.set_attn_implementation(attention)
        model.network.zero_grad()
        model.logits(pairs).square().sum().backward()
        gradients.append(
            {name: value.grad.clone() for name, value in model.trainable().items() if value.grad is not None}
        )
    assert any(".query." in name for name in gradients[0])
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-8)


SMALL = {"negatives": "given", "epochs": 12, "batch_size": 4, "num_negatives": 2, "dev_queries": 2, "dev_share": 0.2}
SMALL |= {"eval_every": 6, "save_every": 2, "patience": 50, "bf16": False}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "lora_rank", "rate"), [("xlm-roberta", 4, 2e-2), ("bert", 0, 5e-3)])
def test_training_makes_a_better_checkpoint(json_lines, tmp_path, family, lora_rank, rate):
    tiny = tiny_checkpoint(tmp_path / "tiny", family)
    out = tmp_path / "out"
    settings = Settings(**SMALL | {"lora_rank": lora_rank, "learning_rate": rate, "dev_queries": 10, "epochs": 20})
    done = finetune(str(tiny), [json_lines], out, settings, dev_paths=[json_lines])
    assert done.after > done.before
    about = json.loads((out / MANIFEST).read_text())
    assert about["nDCG@10"] == {"before": done.before, "after": done.after, "step": done.best_step}
    assert about["settings"]["learning_rate"] == rate
    assert list(about["data_sha256"]) == [f"{json_lines.parent.name}/data.jsonl"]
    assert not (out / "training").exists()
    # The written checkpoint ranks as well as the trained model.
    written = RankingModel(resolve_checkpoint(str(out)), Settings(lora_rank=0, bf16=False))
    dev = data.load([json_lines], "given", 10)
    assert evaluate(written, dev) == pytest.approx(done.after)
    with pytest.raises(BuildError, match="holds a finished checkpoint"):
        finetune(str(tiny), [json_lines], out, settings)


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_killed_training_ends_where_an_unbroken_one_does(json_lines, tmp_path):
    checkpoint = str(tiny_checkpoint(tmp_path / "tiny", "xlm-roberta"))
    settings = Settings(**SMALL | {"epochs": 4, "lora_rank": 4, "negatives": "model", "max_minutes": 1e6})
    later = Settings(**SMALL | {"epochs": 4, "lora_rank": 4, "negatives": "model"})

    def kill(done, planned):
        if done == 5:
            raise KilledError

    whole = finetune(checkpoint, [json_lines], tmp_path / "whole", settings)
    with pytest.raises(KilledError):
        finetune(checkpoint, [json_lines], tmp_path / "broken", settings, on_step=kill)
    other = Settings(**SMALL | {"epochs": 4, "lora_rank": 4, "negatives": "model", "seed": 1})
    with pytest.raises(BuildError, match="other data or settings"):
        finetune(checkpoint, [json_lines], tmp_path / "broken", other)
    seen = []
    resumed = finetune(
        checkpoint, [json_lines], tmp_path / "broken", later, on_step=lambda done, planned: seen.append(done)
    )
    assert seen[0] == 5  # saved after step 4
    assert (resumed.before, resumed.after, resumed.best_step) == (whole.before, whole.after, whole.best_step)
    weights = [
        AutoModelForSequenceClassification.from_pretrained(done.folder).state_dict() for done in (whole, resumed)
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.slow
def test_training_stops_when_nothing_gets_better(json_lines, tmp_path):
    checkpoint = str(tiny_checkpoint(tmp_path / "tiny", "xlm-roberta"))
    settings = Settings(**SMALL | {"learning_rate": 1e-9, "eval_every": 1, "patience": 2})
    done = finetune(checkpoint, [json_lines], tmp_path / "out", settings)
    history = json.loads((done.folder / MANIFEST).read_text())["history"]
    assert [entry["step"] for entry in history] == [1, 2]


@pytest.mark.slow
def test_what_ends_below_its_start_is_not_kept(json_lines, tmp_path, capsys):
    """Training on reversed relevance leaves the checkpoint unchanged."""
    reversed_lines = tmp_path / "reversed.jsonl"
    with reversed_lines.open("w") as file:
        for line in map(json.loads, json_lines.read_text().splitlines()):
            for negative in line["negatives"]:
                file.write(json.dumps(line | {"positive": negative, "negatives": [line["positive"]]}) + "\n")
    checkpoint = tmp_path / "start"
    settings = Settings(**SMALL | {"lora_rank": 4, "learning_rate": 2e-2, "dev_queries": 10, "epochs": 20})
    start = str(tiny_checkpoint(tmp_path / "tiny", "xlm-roberta"))
    finetune(start, [json_lines], checkpoint, settings, dev_paths=[json_lines])
    arguments = ["finetune", str(checkpoint), "--data", str(reversed_lines), "--dev", str(json_lines)]
    arguments += ["--negatives", "given", "--out", str(tmp_path / "out"), "--learning-rate", "0.02", "--fp32"]
    assert main([*arguments, "--max-steps", "8", "--eval-every", "2", "--freeze-layers", "1"]) == 0
    assert "no step ranked them better" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert about["nDCG@10"]["step"] == 0
    assert all(entry["nDCG@10"] < about["nDCG@10"]["before"] for entry in about["history"])
    pairs = [(query, document) for query, document, _ in TRIPLES]
    before, after = (
        RankingModel(resolve_checkpoint(str(folder)), Settings(lora_rank=0, bf16=False)).score(pairs)
        for folder in (checkpoint, tmp_path / "out")
    )
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_frozen_layers_stay_as_they_are(tmp_path, lora_rank):
    checkpoint = resolve_checkpoint(str(tiny_checkpoint(tmp_path / "tiny", "bert")))
    model = RankingModel(checkpoint, Settings(lora_rank=lora_rank, freeze_layers=1))
    names = list(model.trainable())
    assert any(".layer.1." in name for name in names)
    assert any("classifier" in name for name in names)
    assert not any(".layer.0." in name or "embeddings" in name for name in names)
    with pytest.raises(BuildError, match=r"freeze_layers is 2; tiny has 2 layers"):
        RankingModel(checkpoint, Settings(freeze_layers=2))


@pytest.mark.slow
def test_training_ends_in_time(json_lines, tmp_path):
    checkpoint = str(tiny_checkpoint(tmp_path / "tiny", "xlm-roberta"))
    settings = Settings(**SMALL | {"max_minutes": 1e-6, "eval_every": 1000})
    done = finetune(checkpoint, [json_lines], tmp_path / "out", settings)
    history = json.loads((done.folder / MANIFEST).read_text())["history"]
    assert [entry["step"] for entry in history] == [1]  # it looks at the clock after a step, then evaluates


@pytest.mark.slow
def test_command(json_lines, tmp_path, capsys):
    checkpoint = str(tiny_checkpoint(tmp_path / "tiny", "xlm-roberta"))
    arguments = ["finetune", checkpoint, "--data", str(json_lines), "--out", str(tmp_path / "out"), "--max-steps", "2"]
    assert main([*arguments, "--negatives", "given", "--dev-share", "0.2", "--max-length", "64"]) == 0
    assert f"triton-rerank-build export {tmp_path / 'out'}" in capsys.readouterr().out
    assert export(str(tmp_path / "out"), repository=tmp_path / "repository").checkpoint == "out"
    assert main(["finetune", checkpoint, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 1
    assert "give BEIR folders" in capsys.readouterr().err
    assert main(["finetune", checkpoint, "--data", str(json_lines), "--out", str(json_lines)]) == 1
    assert "data.jsonl is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        *({"loss": "hinge"}, {"negatives": "some"}, {"epochs": 0}, {"lora_rank": -1}),
        *({"freeze_layers": -1}, {"dropout": 1.0}, {"max_minutes": 0.0}, {"mining_depth": 0}, {"learning_rate": -1.0}),
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(BuildError, match=str(next(iter(wrong)))):
        Settings(**wrong)
