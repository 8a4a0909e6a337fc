"""What a fine-tuning is told, and what its result depends on."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from triton_rerank_build.errors import BuildError

LOSSES = ("bce", "mse", "ranknet", "listnet", "infonce")
NEGATIVES = ("bm25", "model", "given")
_COUNTS = (
    *("num_negatives", "mining_depth", "epochs", "batch_size", "micro_batch", "dev_queries", "eval_every"),
    *("patience", "save_every", "max_steps"),
)
_FREE = ("eval_every", "patience", "save_every", "max_minutes")
_RANGES: dict[str, tuple[float, float]] = {
    "lora_rank": (0, math.inf),
    "freeze_layers": (0, math.inf),
    "dropout": (0, 1),
    "dev_share": (0, 1),
    "learning_rate": (1e-12, math.inf),
    "max_minutes": (1e-12, math.inf),
}


@dataclass(frozen=True)
class Settings:
    """The numbers of a training run; the defaults suit some hundred to some ten thousand queries.

    Attributes:
        loss: One of `LOSSES`.
        negatives: Where documents to rank below the relevant one come from: "bm25", "model" (BM25's, those
            first that the model itself scores highest), or "given" (those in the data alone).
        num_negatives: Documents beside the relevant one in a list.
        mining_depth: Candidates that BM25 returns for a query.
        lora_rank: Rank of the low-rank update; 0 trains every weight.
        freeze_layers: Lowest layers that keep their weights (and the embeddings with them): no gradient goes through
            them, which saves up to half of a step.
        dropout: Share of the activations that is dropped while training.
        learning_rate: Peak; None for 2e-4 with LoRA and 2e-5 without.
        warmup: Share of the steps in which the learning rate rises; then it falls to 0.
        batch_size: Lists of one step.
        micro_batch: Lists that go through the model together.
        max_length: Tokens of a pair; None for the checkpoint's own limit, at most 512.
        dev_share: Share of the queries that is held out, where no held-out data is given.
        dev_queries: Held-out queries at most.
        eval_every: Steps between two evaluations; None for a fifth of the training, at most 100.
        patience: Evaluations without a gain after which training stops.
        save_every: Steps between two saved states.
        max_steps: Ends the training early; None for all epochs.
        max_minutes: Likewise, by the time spent in steps and evaluations; the learning rate reaches 0 by then.
        bf16: Whether products are computed in bf16; the weights stay fp32.
    """

    loss: str = "infonce"
    negatives: str = "bm25"
    num_negatives: int = 7
    mining_depth: int = 50
    lora_rank: int = 16
    freeze_layers: int = 0
    dropout: float = 0.0
    learning_rate: float | None = None
    warmup: float = 0.06
    weight_decay: float = 0.01
    epochs: int = 1
    batch_size: int = 8
    micro_batch: int = 2
    max_length: int | None = None
    dev_share: float = 0.1
    dev_queries: int = 200
    eval_every: int | None = None
    patience: int = 5
    save_every: int = 25
    max_steps: int | None = None
    max_minutes: float | None = None
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BuildError(f"loss is {self.loss!r}; choose one of {', '.join(LOSSES)}")
        if self.negatives not in NEGATIVES:
            raise BuildError(f"negatives is {self.negatives!r}; choose one of {', '.join(NEGATIVES)}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BuildError(f"{name} is {value}; it must be 1 or more")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                beyond = "" if high == math.inf else f", and below {high:g}"
                raise BuildError(f"{name} is {value}; it must be {low:g} or more{beyond}")

    @property
    def peak(self) -> float:
        """Learning rate after the warm-up."""
        return self.learning_rate or (2e-4 if self.lora_rank else 2e-5)

    def resumable(self) -> dict[str, Any]:
        """What must be the same for a broken-off training to go on; when it ends and what it saves may change."""
        return {name: value for name, value in self.as_dict().items() if name not in _FREE}

    def as_dict(self) -> dict[str, Any]:
        """Every number, for manifests."""
        return asdict(self) | {"learning_rate": self.peak}
