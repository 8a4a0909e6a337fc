"""Training by sentence-transformers' `CrossEncoderTrainer`, from a checkpoint to one that ranks better."""

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from transformers.trainer_callback import ExportableState, PrinterCallback, TrainerCallback, TrainerState

from triton_rerank_build.checkpoints.adapter import trainable, write_checkpoint
from triton_rerank_build.checkpoints.families import ENCODERS
from triton_rerank_build.checkpoints.resolve import Checkpoint, resolve_checkpoint
from triton_rerank_build.errors import BuildError, UnsupportedModelError
from triton_rerank_build.finetuning.data import Example, load, mine
from triton_rerank_build.finetuning.settings import Settings
from triton_rerank_build.graphs.tokenizer import cut, load_tokenizer
from triton_rerank_build.support.files import sha256_texts, work_folder, write_text
from triton_rerank_build.support.progress import Steps, logger

# ruff: noqa: ANN401  # what transformers calls its callbacks with
MANIFEST, MEASURE, _WEIGHTS = "finetune.json", "nDCG@10", "trained.safetensors"
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "triton-rerank")
OnStep = Callable[[int, int], None]


class _InfoNce(losses.MultipleNegativesRankingLoss):
    """Without the documents of other queries, which are often unjudged answers."""

    def get_in_batch_negatives(self, anchors: object, candidates: object) -> Generator[list[str], None, None]:
        yield from ()


LOSS_OF: dict[str, Callable[[CrossEncoder], torch.nn.Module]] = {
    "bce": losses.BinaryCrossEntropyLoss,
    "mse": lambda model: losses.MSELoss(model, activation_fn=torch.nn.Sigmoid()),
    "ranknet": lambda model: losses.RankNetLoss(model, mini_batch_size=-1),
    "listnet": lambda model: losses.ListNetLoss(model, mini_batch_size=-1),
    "infonce": lambda model: _InfoNce(model, scale=1, activation_fn=None),
}


class _Trainer(CrossEncoderTrainer):
    """Saves the trained weights alone, as they are, and no card, whose statistics would cut texts as if in pairs."""

    def add_model_card_callback(self, default_args_dict: object) -> None: ...

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        trained = {name: value.data for name, value in self.model.named_parameters() if value.requires_grad}
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
        save_file(trained, f"{output_dir}/{_WEIGHTS}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:
        self.model.load_state_dict(load_file(f"{resume_from_checkpoint}/{_WEIGHTS}"), strict=False)


class _Progress(TrainerCallback, ExportableState):
    """Says when to evaluate, save and stop; keeps the time and the evaluations, the first of them before any step."""

    def __init__(self, settings: Settings, on_step: OnStep, seconds: float, evaluations: list[dict[str, Any]]) -> None:
        self.settings, self.on_step, self.evaluations = settings, on_step, evaluations
        self.began = time.monotonic() - seconds

    def state(self) -> dict[str, Any]:
        return {"seconds": time.monotonic() - self.began, "evaluations": self.evaluations}

    def best(self) -> dict[str, Any]:
        return max(self.evaluations, key=lambda entry: entry[MEASURE])  # the first of equal ones

    def time_left(self) -> float:
        return 1 - (time.monotonic() - self.began) / 60 / (self.settings.max_minutes or math.inf)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = min(group["lr"], args.learning_rate * max(0.0, self.time_left()))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, best = state.global_step, self.best()["step"]
        over = control.should_training_stop = step >= state.max_steps or self.time_left() <= 0
        control.should_evaluate = control.should_log = over or step % args.eval_steps == 0
        control.should_save = over or step % self.settings.save_every == 0
        state.best_model_checkpoint = f"{args.output_dir}/checkpoint-{best}" if best else None  # it is not deleted
        self.on_step(step, state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, value = state.global_step, kwargs["metrics"]["eval_ndcg@10"]
        loss = round(state.log_history[-2]["loss"], 6) if step else None
        self.evaluations.append({"step": step, "loss": loss, MEASURE: value})
        logger.info("      step %d of %d: loss %s, %s %.4f", step, state.max_steps, loss, MEASURE, value)
        if step == 0 and value == 1:
            logger.warning("      no training can be better than 1: give harder queries with --dev")
        control.should_save = True
        control.should_training_stop |= self.evaluations[::-1].index(self.best()) >= self.settings.patience


def load_model(checkpoint: Checkpoint, settings: Settings) -> CrossEncoder:
    """A checkpoint to be trained, which takes pairs as they are served if their queries were cut before."""
    torch.manual_seed(settings.seed)
    length = checkpoint.resolve_max_length(settings.max_length or min(512, checkpoint.limit))
    device, family = "cuda" if torch.cuda.is_available() else "cpu", checkpoint.family
    # On a CPU PyTorch's fused attention is slower in training; its memory grows more slowly with long pairs.
    weights = {"dtype": torch.float32, "attn_implementation": "eager" if device == "cpu" and length <= 512 else "sdpa"}
    options: dict[str, Any] = {"device": device, "model_kwargs": weights, "local_files_only": True}
    options |= {"max_length": length, "activation_fn": torch.nan_to_num}  # nan: of a training that diverged
    model: CrossEncoder = CrossEncoder(str(checkpoint.folder), **options)
    first: Any = model[0]
    first.processing_kwargs = {"text": {"truncation": "only_second", "return_token_type_ids": family == "bert"}}
    first.model = trainable(first.model, settings.lora_rank, settings.freeze_layers, settings.dropout, settings.bf16)
    return model


def _rows(examples: Sequence[Example], settings: Settings) -> Iterator[dict[str, Any]]:
    """Lists of a relevant document and some of the hardest, anew for each epoch, in the columns that the loss takes."""
    count = settings.num_negatives
    for number in range(settings.epochs * len(examples)):
        item, chance = examples[number % len(examples)], random.Random(f"{settings.seed} {number}")
        text, relevance = chance.choice(item.relevant)
        # By length, since a column of several lists goes through the model together: so there is less padding.
        others = sorted(chance.sample(item.negatives[: 4 * count], min(count, len(item.negatives))), key=len)
        if settings.loss == "infonce":  # its lists are of one length: the negatives of a short one come again
            columns = {f"negative_{index}": others[index % len(others)] for index in range(count)}
            yield {"query": item.query, "positive": text, **columns}
        elif settings.loss in ("bce", "mse"):
            yield {"query": item.query, "document": text, "label": 1.0}
            yield from ({"query": item.query, "document": other, "label": 0.0} for other in others)
        else:
            yield {"query": item.query, "documents": [text, *others], "labels": [relevance, *[0.0] * len(others)]}


def _train(
    model: CrossEncoder, learn: list[Example], dev: list[Example], settings: Settings, work: Path, on_step: OnStep
) -> _Progress:
    """Train to the end, from the newest state in `work` that was saved whole."""
    states = [path for path in work.glob("checkpoint-*/trainer_state.json") if path.stat().st_size]  # written last
    newest = max(states, key=lambda path: int(path.parent.name[11:]), default=None)
    kept = TrainerState.load_from_json(str(newest)).stateful_callbacks if newest else {}
    progress = _Progress(settings, on_step, **kept.get("_Progress", {"seconds": 0.0, "evaluations": []}))
    if kept and kept["TrainerControl"]["args"]["should_training_stop"]:
        return progress
    steps = min(math.ceil(settings.epochs * len(learn) / settings.batch_size), settings.max_steps or math.inf)
    together = max(n for n in range(1, settings.micro_batch + 1) if settings.batch_size % n == 0)
    pairs = 1 + settings.num_negatives if settings.loss in ("bce", "mse") else 1
    options: dict[str, Any] = {"max_steps": steps, "learning_rate": settings.learning_rate, "seed": settings.seed}
    options |= {"per_device_train_batch_size": together * pairs, "weight_decay": settings.weight_decay}
    options |= {"gradient_accumulation_steps": settings.batch_size // together, "warmup_steps": settings.warmup}
    options |= {"bf16": settings.bf16, "use_cpu": model.device.type == "cpu", "dataloader_pin_memory": False}
    options |= {"eval_steps": settings.eval_every or min(100, math.ceil(steps / 5)), "eval_on_start": newest is None}
    options |= {"logging_strategy": "no", "save_strategy": "no", "save_total_limit": 1, "disable_tqdm": True}
    held_out: Any = [{"query": q.query, "positive": [*dict(q.relevant)], "negative": q.negatives[:20]} for q in dev]
    evaluator = CrossEncoderRerankingEvaluator(held_out, batch_size=16, write_csv=False)
    arguments, rows = CrossEncoderTrainingArguments(str(work), **options), Dataset.from_list([*_rows(learn, settings)])
    arguments._n_gpu = 1  # of several GPUs: they would split a batch, which is a list of texts here
    trainer = _Trainer(model, arguments, rows, loss=LOSS_OF[settings.loss], evaluator=evaluator, callbacks=[progress])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(newest.parent) if newest else None)
    return progress


def finetune(
    checkpoint: str,
    data_paths: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    dev_paths: Sequence[Path] = (),
    revision: str | None = None,
    on_step: OnStep = lambda done, planned: None,
) -> dict[str, Any]:
    """Train, write the best checkpoint into `out`, and return its manifest; the same call resumes a broken training."""
    if (out / MANIFEST).exists() or out.is_file():
        raise BuildError(f"{out} is a file or holds a finished checkpoint; choose another folder")
    began, steps = time.monotonic(), Steps(4)
    settings = replace(settings, learning_rate=settings.learning_rate or (2e-4 if settings.lora_rank else 2e-5))
    with steps.step("checkpoint and data"):
        found = resolve_checkpoint(checkpoint, revision)
        if found.family not in ENCODERS or found.relevant is not None:
            kind = f"of type {found.family!r}" if found.relevant is None else "a classifier of two labels"
            taken = f"fine-tuned are cross-encoders with one logit of type {', '.join(ENCODERS)}"
            raise UnsupportedModelError(f"{checkpoint} is {kind}; {taken}")
        learn = load(data_paths, "train", settings)
        dev = load(dev_paths, "dev", settings)[: settings.dev_queries] if dev_paths else []
        if not dev:
            count = max(1, min(settings.dev_queries, round(len(learn) * settings.dev_share)))
            learn, dev = learn[count:], learn[:count]
        if not learn:
            raise BuildError("one query only: nothing can be held out; give --dev, or more data")
        logger.info("      %d queries to learn from, %d held out", len(learn), len(dev))
        if len(dev) < 30:
            logger.warning("      nDCG@10 of fewer than 30 held-out queries says little")
        digests = {name: sha256_texts(map(repr, part)) for name, part in (("train", learn), ("dev", dev))}
        fixed = replace(settings, eval_every=None, patience=1, save_every=1, max_minutes=None)  # those may change
        work = work_folder(out.absolute() / "training", [found.revision, repr(fixed), *digests.values()])
        model, tokenizer = load_model(found, settings), load_tokenizer(found)
        limit, some = model.tokenizer.model_max_length, learn[:200]
        for item in (*learn, *dev):
            item.query = cut(tokenizer, item.query, min(limit * 3 // 4, limit - 8))
        long = sum(len(tokenizer.encode(item.query, item.relevant[0][0])) > limit for item in some)
        logger.info("      of %d queries %d have a relevant document that is cut at %d tokens", len(some), long, limit)
    with steps.step("mining negatives"):
        if settings.negatives == "model":
            if not (mined := work / "mined.json").exists():
                with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
                    write_text(mined, json.dumps([asdict(item) for item in mine(model, learn)]))
            learn = [Example(**fields) for fields in json.loads(mined.read_text())]
    with steps.step(f"training on {model.device}"):
        progress = _train(model, learn, dev, settings, work, on_step)
    with steps.step(f"writing {out}"):
        (start, *history), best = progress.evaluations, progress.best()
        model = load_model(found, replace(settings, bf16=False))  # the update is added to unrounded weights
        if best["step"]:
            model.load_state_dict(load_file(work / f"checkpoint-{best['step']}" / _WEIGHTS), strict=False)
        write_checkpoint(model[0].model, found, out)
        about: dict[str, Any] = {"checkpoint": found.name, "revision": found.revision, "settings": asdict(settings)}
        about |= {"data_sha256": digests, "num_queries": len(learn), "num_dev_queries": len(dev)}
        about |= {MEASURE: {"before": start[MEASURE], "after": best[MEASURE], "step": best["step"]}, "history": history}
        about |= {"seconds_since_last_start": round(time.monotonic() - began, 1)}
        about |= {"versions": {name: version(name) for name in _LIBRARIES}}
        write_text(out / MANIFEST, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        shutil.rmtree(work.parent)
    return about
