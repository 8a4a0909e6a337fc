"""The training loop: steps, evaluation on held-out queries, early stopping, and states to resume from."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triton_rerank.evaluation.measures import measure
from triton_rerank_build._finetune_data import Example, TrainingList, training_list
from triton_rerank_build._finetune_losses import ABSENT, LOSS_OF
from triton_rerank_build._finetune_model import RankingModel
from triton_rerank_build._finetune_settings import Settings
from triton_rerank_build.errors import BuildError
from triton_rerank_build.support.progress import logger

MEASURE = "nDCG@10"
_DEV_NEGATIVES = 20
_MAX_GRADIENT = 1.0


@dataclass
class State:
    """Where a training is; with the weights and the optimizer all that resuming needs.

    Attributes:
        step: Steps done.
        before: Measure of the checkpoint that training started from.
        best: The best measure, and its step; step 0 is the checkpoint itself.
        bad: Evaluations since the best one.
        seconds: Spent in steps and evaluations.
        history: (step, mean loss since the last evaluation, measure).
    """

    step: int = 0
    before: float = 0.0
    best: tuple[float, int] = (0.0, 0)
    bad: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list)


class Training:
    """Trains a model; the best weights by held-out nDCG@10 are in it afterwards, at worst those it came with.

    Args:
        model: Changed in place.
        examples: To train on.
        dev: Held-out queries.
        settings: How.
        path: File of the state; a training that was broken off goes on from it.
        signature: What the state must have been saved with.
        on_step: Called after each step with the steps done and planned; may raise to break off.
    """

    def __init__(
        self,
        model: RankingModel,
        examples: Sequence[Example],
        dev: Sequence[Example],
        settings: Settings,
        path: Path,
        signature: str,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.state = State()
        self._examples, self._dev = examples, dev
        self._path, self._signature, self._on_step = path, signature, on_step
        self._steps_of_epoch = math.ceil(len(examples) / settings.batch_size)
        planned = settings.epochs * self._steps_of_epoch
        self.num_steps = min(planned, settings.max_steps or planned)
        self._eval_every = settings.eval_every or min(100, math.ceil(self.num_steps / 5))
        self._optimizer = torch.optim.AdamW(
            model.trainable().values(), lr=settings.peak, weight_decay=settings.weight_decay
        )
        self._best_weights: dict[str, Tensor] = {}
        self._losses: list[float] = []

    def run(self) -> State:
        """Train to the end, or until nothing gets better."""
        torch.manual_seed(self.settings.seed)
        if self._path.exists():
            self._load()
            logger.info("      going on after step %d of %d", self.state.step, self.num_steps)
        else:
            self.state.before = evaluate(self.model, self._dev)
            self._keep_best(self.state.before)
            logger.info(
                "      %s of the checkpoint on %d held-out queries %.4f", MEASURE, len(self._dev), self.state.before
            )
        self.model.network.train()
        while self._share_done() < 1 and self.state.bad < self.settings.patience:
            started = time.monotonic()
            self._step()
            self.state.seconds += time.monotonic() - started
            over = self._share_done() >= 1
            if self.state.step % self._eval_every == 0 or over:
                self._evaluate()
            if self.state.step % self.settings.save_every == 0 or over:
                self._save()
            if self._on_step is not None:
                self._on_step(self.state.step, self.num_steps)
        self.model.load_trainable(self._best_weights)
        return self.state

    def _share_done(self) -> float:
        """Of the steps, or of the time where that is shorter."""
        by_time = self.state.seconds / (60 * self.settings.max_minutes) if self.settings.max_minutes else 0.0
        return max(self.state.step / self.num_steps, by_time)

    def _step(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.peak * schedule(self._share_done(), 1 / self.num_steps, self.settings.warmup)
        lists = self._lists(self.state.step)
        lists.sort(key=lambda item: sum(map(len, item.documents)))  # similar lengths together: little padding
        total = 0.0
        for start in range(0, len(lists), self.settings.micro_batch):
            part = lists[start : start + self.settings.micro_batch]
            logits, relevances = forward(self.model, part)
            loss = LOSS_OF[self.settings.loss](logits, relevances) * (len(part) / len(lists))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.trainable().values(), _MAX_GRADIENT)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._losses.append(total)
        self.state.step += 1

    def _lists(self, step: int) -> list[TrainingList]:
        """The lists of a step: the same whether training was broken off before it or not."""
        epoch, place = divmod(step, self._steps_of_epoch)
        order = list(range(len(self._examples)))
        random.Random(f"{self.settings.seed} {epoch}").shuffle(order)
        chosen = order[place * self.settings.batch_size : (place + 1) * self.settings.batch_size]
        chance = random.Random(f"{self.settings.seed} step {step}")
        return [training_list(self._examples[index], self.settings.num_negatives, chance) for index in chosen]

    def _evaluate(self) -> None:
        started = time.monotonic()
        value, state = evaluate(self.model, self._dev), self.state
        state.seconds += time.monotonic() - started
        loss = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        state.history.append((state.step, loss, value))
        if value > state.best[0]:
            self._keep_best(value)
        else:
            state.bad += 1
        logger.info(
            "      step %d of %d, %.0f s: loss %.4f, %s %.4f",
            *(state.step, self.num_steps, state.seconds, loss, MEASURE, value),
        )

    def _keep_best(self, value: float) -> None:
        self.state.best, self.state.bad = (value, self.state.step), 0
        self._best_weights = {name: tensor.detach().clone() for name, tensor in self.model.trainable().items()}

    def _save(self) -> None:
        content = {
            "signature": self._signature,
            "state": vars(self.state),
            "losses": self._losses,
            "weights": {name: tensor.detach() for name, tensor in self.model.trainable().items()},
            "best_weights": self._best_weights,
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        temporary = self._path.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(self._path)

    def _load(self) -> None:
        content: dict[str, Any] = torch.load(self._path, map_location=self.model.device, weights_only=True)
        if content["signature"] != self._signature:
            raise BuildError(
                f"{self._path} was saved by a training with other data or settings; delete its folder or choose another"
            )
        self.state = State(**content["state"])
        self._losses, self._best_weights = content["losses"], content["best_weights"]
        self.model.load_trainable(content["weights"])
        self._optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"].cpu())


def schedule(done: float, step: float, warmup: float) -> float:
    """Share of the peak learning rate: up in the first `warmup` of the training, then down to 0.

    Args:
        done: Share of the training that is behind.
        step: Share that one step is; the rate is never 0, from the first step to the last.
        warmup: Share in which the rate rises; at least one step.
    """
    rising = max(step, warmup)
    return max(step, min((done + step) / rising, (1 - done) / (1 - rising + step)))


def forward(model: RankingModel, lists: Sequence[TrainingList]) -> tuple[Tensor, Tensor]:
    """Logits and relevances, [num_lists, list_length] fp32; places without a document have relevance `ABSENT`."""
    longest = max(len(item.documents) for item in lists)
    logits = iter(_by_length(model, [(item.query, document) for item in lists for document in item.documents]))
    zero = torch.zeros((), device=model.device)
    rows = [[next(logits) for _ in item.documents] for item in lists]
    padded = torch.stack([torch.stack([*row, *[zero] * (longest - len(row))]) for row in rows])
    relevances = [[*item.relevances, *[ABSENT] * (longest - len(item.relevances))] for item in lists]
    return padded, torch.tensor(relevances, device=model.device)


def _by_length(model: RankingModel, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
    """A logit each, computed in two halves, the shorter pairs and the longer: less padding, the same memory."""
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][0]) + len(pairs[place][1]))
    half = (len(order) + 1) // 2
    results: dict[int, Tensor] = {}
    for places in filter(None, (order[:half], order[half:])):
        results |= zip(places, model.logits([pairs[place] for place in places]), strict=True)
    return [results[place] for place in range(len(pairs))]


def evaluate(model: RankingModel, dev: Sequence[Example]) -> float:
    """Mean nDCG@10 of the model over each query's relevant documents and its first negatives."""
    documents = [[*(text for text, _ in example.relevant), *example.negatives[:_DEV_NEGATIVES]] for example in dev]
    pairs = [(example.query, text) for example, texts in zip(dev, documents, strict=True) for text in texts]
    logits: Iterator[float] = iter(model.score(pairs))
    run = {f"q{place}": {f"d{i}": next(logits) for i in range(len(texts))} for place, texts in enumerate(documents)}
    qrels = {
        f"q{place}": {f"d{i}": math.ceil(relevance) for i, (_, relevance) in enumerate(example.relevant)}
        for place, example in enumerate(dev)
    }
    return measure([MEASURE], qrels, run).mean[MEASURE]
