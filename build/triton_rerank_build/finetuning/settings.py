"""The numbers of a training; the help of the command says what they mean."""

from dataclasses import dataclass

LOSSES = ("bce", "mse", "ranknet", "listnet", "infonce")
NEGATIVES = ("bm25", "model", "given")


@dataclass(frozen=True)
class Settings:
    """The defaults suit some hundred to some ten thousand queries."""

    loss: str = "infonce"
    negatives: str = "bm25"
    num_negatives: int = 7
    mining_depth: int = 50
    lora_rank: int = 16
    freeze_layers: int = 0
    dropout: float = 0.0
    learning_rate: float | None = None
    warmup: float = 0.06  # share of the steps in which the rate rises
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
