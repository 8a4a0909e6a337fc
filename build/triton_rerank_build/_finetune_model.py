"""The model that is trained: a checkpoint, its pairs as the server makes them, and a LoRA or all its weights."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triton_rerank_build._checkpoint import Checkpoint
from triton_rerank_build._tokenizer import encode_pair, load_tokenizer

_TARGETS = ["query", "key", "value", "dense"]
_DEFAULT_LIMIT = 512
_SCORE_BATCH = 16
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class RankingModel:
    """A cross-encoder in training.

    Pairs are assembled as the server does it: the query cut to 3/4 of `max_length`, then the document alone to
    what is left.

    Args:
        checkpoint: What to start from.
        max_length: Tokens of a pair; the checkpoint's limit, at most 512, if None.
        lora_rank: Rank of the update; 0 trains every weight.
        bf16: Whether products are computed in bf16.
        seed: Of the update's first weights.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, max_length: int | None, lora_rank: int, bf16: bool, seed: int
    ) -> None:
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(seed)
        self.checkpoint = checkpoint
        self.max_length = checkpoint.resolve_max_length(max_length or min(_DEFAULT_LIMIT, checkpoint.limit))
        self._tokenizer = load_tokenizer(checkpoint)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Weights stay fp32: bf16 has too few digits to add small updates to.
        model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint.folder, dtype=torch.float32)
        self._pad_id = model.config.pad_token_id
        self._lora = lora_rank > 0
        self._bf16 = bf16
        self.network = (_with_lora(model, lora_rank) if self._lora else model).to(self.device)

    def trainable(self) -> dict[str, Tensor]:
        """Name -> parameter of all that training changes."""
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}

    def load_trainable(self, saved: dict[str, Tensor]) -> None:
        """Take over parameters of an earlier `trainable`."""
        with torch.no_grad():
            for name, parameter in self.trainable().items():
                parameter.copy_(saved[name])

    def logits(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """[num_pairs] fp32, with gradients where they are enabled."""
        rows = [
            encode_pair(self._tokenizer, *pair, query_length=self.max_length * 3 // 4, length=self.max_length)
            for pair in pairs
        ]
        width = max(len(row) for row in rows)
        inputs = {
            "input_ids": [row.ids + [self._pad_id] * (width - len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (width - len(row)) for row in rows],
        }
        if self.checkpoint.family == "bert":
            inputs["token_type_ids"] = [row.type_ids + [0] * (width - len(row)) for row in rows]
        tensors = {name: torch.tensor(values, device=self.device) for name, values in inputs.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self.network(**tensors).logits  # [num_pairs, 1]
        return logits[:, 0].float()

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits without gradients, in the order of `pairs`; texts of similar length go together."""
        order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][0]) + len(pairs[place][1]))
        results = [0.0] * len(pairs)
        training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            for start in range(0, len(order), _SCORE_BATCH):
                places = order[start : start + _SCORE_BATCH]
                for place, logit in zip(places, self.logits([pairs[place] for place in places]).tolist(), strict=True):
                    results[place] = logit
        self.network.train(training)
        return results

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `export` takes; with LoRA, its update goes into the weights, and beside them."""
        network = self.network
        if self._lora:
            network.peft_config["default"].base_model_name_or_path = self.checkpoint.name
            # No look at the hub for what the vocabulary was: it is never changed here.
            network.save_pretrained(folder / "adapter", save_embedding_layers=False)
            network = network.merge_and_unload()
        network.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            if (self.checkpoint.folder / name).is_file():
                (folder / name).write_bytes((self.checkpoint.folder / name).read_bytes())


def _with_lora(model: Any, rank: int) -> Any:  # noqa: ANN401  # peft ships no types
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_TARGETS,
        exclude_modules=["classifier.*"],
        modules_to_save=["classifier"],  # the head is small and the first to change: it is trained whole
        task_type="SEQ_CLS",
    )
    with warnings.catch_warnings():
        # peft asks transformers for a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)
