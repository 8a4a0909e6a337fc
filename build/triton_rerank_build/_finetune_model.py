"""The model that is trained: a checkpoint, its pairs as the server makes them, and a LoRA or all its weights."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triton_rerank_build import _finetune_attention
from triton_rerank_build._finetune_data import Example
from triton_rerank_build._finetune_settings import Settings
from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import BuildError
from triton_rerank_build.graphs.tokenizer import encode_pair, load_tokenizer

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
        settings: Of these it takes max_length, lora_rank, freeze_layers, dropout, bf16 and the seed of the update.

    Raises:
        BuildError: The checkpoint has no more layers than are to be frozen.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.checkpoint = checkpoint
        self.max_length = checkpoint.resolve_max_length(settings.max_length or min(_DEFAULT_LIMIT, checkpoint.limit))
        self._tokenizer = load_tokenizer(checkpoint)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = settings.bf16
        # Faster on a CPU; but each layer then holds length x length weights a head, too many for long pairs.
        on_cpu = self.device.type == "cpu" and self.max_length <= _DEFAULT_LIMIT
        model = _load(checkpoint, _finetune_attention.NAME if on_cpu else "sdpa")
        layers = model.config.num_hidden_layers
        if settings.freeze_layers >= layers:
            raise BuildError(f"freeze_layers is {settings.freeze_layers}; {checkpoint.name} has {layers} layers")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = settings.dropout
        self._pad_id = model.config.pad_token_id
        self._lora = settings.lora_rank > 0
        self.network = (_with_lora(model, settings) if self._lora else _frozen_below(model, settings)).to(self.device)
        if self._bf16:
            # What is trained stays fp32: bf16 has too few digits to add small updates to.
            for parameter in self.network.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()

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

    def share_cut(self, examples: Sequence[Example]) -> float:
        """Of their relevant documents, the share that `max_length` cuts."""
        pairs = [(example.query, text) for example in examples for text, _ in example.relevant]
        lengths = [
            len(encode_pair(self._tokenizer, *pair, query_length=self.max_length * 3 // 4, length=None))
            for pair in pairs
        ]
        return sum(length > self.max_length for length in lengths) / max(1, len(lengths))

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
        # Onto the weights as they were read: those in memory may have been rounded to bf16.
        whole = _load(self.checkpoint, "sdpa")
        if self._lora:
            self.network.peft_config["default"].base_model_name_or_path = self.checkpoint.name
            # No look at the hub for what the vocabulary was: it is never changed here.
            self.network.save_pretrained(folder / "adapter", save_embedding_layers=False)
            whole = merged(whole, folder / "adapter")
        else:
            whole.load_state_dict(self.trainable(), strict=False)
        whole.save_pretrained(folder)
        for name in _TOKENIZER_FILES:
            if (self.checkpoint.folder / name).is_file():
                (folder / name).write_bytes((self.checkpoint.folder / name).read_bytes())


def _load(checkpoint: Checkpoint, attention: str) -> Any:  # noqa: ANN401  # of whatever family it is
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        checkpoint.folder, dtype=torch.float32, attn_implementation=attention
    )


def _frozen_below(model: Any, settings: Settings) -> Any:  # noqa: ANN401
    if settings.freeze_layers:
        encoder = model.base_model
        for part in (encoder.embeddings, *encoder.encoder.layer[: settings.freeze_layers]):
            part.requires_grad_(False)
    return model


def merged(model: Any, adapter: Path) -> Any:  # noqa: ANN401
    """The model with a LoRA's update in its weights."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft asks transformers under a name that transformers has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _with_lora(model: Any, settings: Settings) -> Any:  # noqa: ANN401  # peft ships no types
    from peft import LoraConfig, get_peft_model

    upper = range(settings.freeze_layers, model.config.num_hidden_layers)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_rank,
        target_modules=_TARGETS,
        layers_to_transform=list(upper) if settings.freeze_layers else None,
        layers_pattern="layer" if settings.freeze_layers else None,
        exclude_modules=["classifier.*"],
        modules_to_save=["classifier"],  # the head is small and the first to change: it is trained whole
        task_type="SEQ_CLS",
    )
    with warnings.catch_warnings():
        # peft asks transformers for a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)
