"""The kinds of networks that are exported: how each is loaded, its reference logits, and its graph."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from triton_rerank_build.checkpoints.families import DECODERS, MODERN
from triton_rerank_build.checkpoints.layout import TextLayout
from triton_rerank_build.checkpoints.prompts import PROMPTS
from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import UnsupportedModelError
from triton_rerank_build.graphs.cross_encoder import RerankGraph
from triton_rerank_build.graphs.decoder import DecoderGraph
from triton_rerank_build.graphs.encoder_parts import HfModule, head_of, reduce_labels
from triton_rerank_build.graphs.modernbert import ModernGraph
from triton_rerank_build.graphs.module_head import load_head
from triton_rerank_build.graphs.prompted import answer_ids, check_same_prompts, prompt_layout
from triton_rerank_build.graphs.rows import template_layout
from triton_rerank_build.graphs.tokenizer import check_same_ids, has_token_types
from triton_rerank_build.graphs.weights import load_base, load_language_model, load_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Logits = Callable[[Tensor, Tensor], Tensor]
"""The reference: token ids and the mask with token types, both [num_pairs, length] int64 -> [num_pairs, 1] fp32."""


class Network(Protocol):
    """A checkpoint's network in PyTorch.

    Attributes:
        model: transformers' model, fp32.
        layout: How a pair is laid out.
    """

    model: HfModule
    layout: TextLayout

    def check_ids(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Check that tokenizer.json and the layout give the ids of transformers.

        Raises:
            ParityError: They do not.
        """
        ...

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The reference (see `Logits`), from transformers' own forward."""
        ...

    def graph(self, dtype: torch.dtype, max_length: int) -> nn.Module:
        """The network of padded rows that is exported. It takes over the weights: `logits` fails afterwards."""
        ...


def load_network(checkpoint: Checkpoint, tokenizer: "Tokenizer") -> Network:
    """Load a checkpoint's weights.

    Raises:
        UnsupportedModelError: They cannot be read, or do not fit the tokenizer.
    """
    if checkpoint.family in DECODERS:
        return Decoder(checkpoint, tokenizer)
    if checkpoint.family in MODERN:
        return Modern(checkpoint, tokenizer)
    return Other(checkpoint, tokenizer) if checkpoint.others_network else Encoder(checkpoint, tokenizer)


def classifier_logits(model: HfModule, relevant: int | None = None) -> Logits:
    """The reference of a sequence classifier.

    Args:
        model: transformers' model.
        relevant: Of two logits the one that stands for relevance, less the other; None if there is one.
    """

    def logits(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": (attention_mask > 0).long()}
        if (attention_mask > 1).any():  # DistilBERT's forward takes no types
            inputs["token_type_ids"] = (attention_mask > 1).long()
        found: Tensor = model(**inputs).logits
        return found if relevant is None else (found[:, relevant] - found[:, 1 - relevant])[:, None]

    return logits


class Encoder:
    """A sequence classifier whose layers `RerankGraph` knows."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: "Tokenizer") -> None:
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self.model = load_model(checkpoint)
        typed = has_token_types(tokenizer, checkpoint)
        self.layout = template_layout(tokenizer, self.model.config.pad_token_id, token_types=typed)
        self.logits = classifier_logits(self.model, checkpoint.relevant)

    def check_ids(self, pairs: Iterable[tuple[str, str]]) -> None:
        """See `Network`."""
        check_same_ids(self._tokenizer, self._checkpoint, pairs, self.layout)

    def graph(self, dtype: torch.dtype, max_length: int) -> nn.Module:
        """See `Network`."""
        reduce_labels(head_of(self.model).out, self._checkpoint.relevant)
        return RerankGraph(self.model, dtype=dtype, token_types=bool(self.layout.token_types)).eval()


class Other:
    """Any other sequence classifier that transformers has, exported from its own forward."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: "Tokenizer") -> None:
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self.model = load_model(checkpoint, attention="eager")
        pad_id, typed = self.model.config.pad_token_id, has_token_types(tokenizer, checkpoint)
        self.layout = template_layout(tokenizer, 0 if pad_id is None else pad_id, token_types=typed)
        if not self.layout.between:
            raise UnsupportedModelError(
                f"tokenizer.json of {checkpoint.name} has no special token between two texts: their layout is not known"
            )
        self.logits = classifier_logits(self.model, checkpoint.relevant)

    def check_ids(self, pairs: Iterable[tuple[str, str]]) -> None:
        """See `Network`."""
        check_same_ids(self._tokenizer, self._checkpoint, pairs, self.layout)

    def graph(self, dtype: torch.dtype, max_length: int) -> nn.Module:
        """See `Network`."""
        if dtype != torch.float32:
            raise UnsupportedModelError(f"{self._checkpoint.name} is of type {self._checkpoint.family!r}: fp32 only")
        typed = bool(self.layout.token_types)
        return ForwardGraph(self.model, self._checkpoint.relevant, token_types=typed).eval()


class ForwardGraph(nn.Module):
    """transformers' own forward, with the inputs of every exported network."""

    def __init__(self, model: HfModule, relevant: int | None, *, token_types: bool) -> None:
        super().__init__()
        self.model, self.relevant, self.token_types = model, relevant, token_types

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[num_pairs, length] int32, twice -> [num_pairs, 1] fp32."""
        inputs = {"input_ids": input_ids.long(), "attention_mask": (attention_mask > 0).long()}
        if self.token_types:
            inputs["token_type_ids"] = (attention_mask > 1).long()
        logits: Tensor = self.model(**inputs).logits
        if self.relevant is None:
            return logits
        return logits[:, self.relevant : self.relevant + 1] - logits[:, 1 - self.relevant : 2 - self.relevant]


class Modern:
    """ModernBERT with a classifier, or with modules of sentence-transformers."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: "Tokenizer") -> None:
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self.model = load_base(checkpoint) if checkpoint.head else load_model(checkpoint)
        self._head = load_head(checkpoint.head, checkpoint.name) if checkpoint.head else []
        self.layout = template_layout(tokenizer, self.model.config.pad_token_id, token_types=False)

    def check_ids(self, pairs: Iterable[tuple[str, str]]) -> None:
        """See `Network`."""
        check_same_ids(self._tokenizer, self._checkpoint, pairs, self.layout)

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See `Network`."""
        if not self._head:
            return classifier_logits(self.model, self._checkpoint.relevant)(input_ids, attention_mask)
        states = self.model(input_ids=input_ids, attention_mask=(attention_mask > 0).long()).last_hidden_state
        logits: Tensor = nn.Sequential(*self._head)(states[:, 0])
        return logits

    def graph(self, dtype: torch.dtype, max_length: int) -> nn.Module:
        """See `Network`."""
        head, model = self._head, self.model
        if not head:
            reduce_labels(model.classifier, self._checkpoint.relevant)
            head = [model.head.dense, model.head.act, model.head.norm, model.classifier]
        mean = not self._head and model.config.classifier_pooling == "mean"
        return ModernGraph(model.base_model, head, mean=mean, max_length=max_length, dtype=dtype).eval()


class Decoder:
    """A language model that answers yes or no, or the same with a head of one logit."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: "Tokenizer") -> None:
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self._prompt = PROMPTS[checkpoint.family]
        self._answers = answer_ids(tokenizer, self._prompt, checkpoint)
        self.model = load_language_model(checkpoint) if checkpoint.causal else load_model(checkpoint)
        self.layout = prompt_layout(tokenizer, self._prompt, checkpoint)

    def check_ids(self, pairs: Iterable[tuple[str, str]]) -> None:
        """See `Network`."""
        check_same_prompts(self._tokenizer, self._checkpoint, self._prompt, pairs, self.layout)

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See `Network`. Of a language model by the authors' formula: softmax over both answers at the last token."""
        mask = (attention_mask > 0).long()
        states = self.model.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        last = states[torch.arange(len(states)), mask.sum(1) - 1]  # [num_pairs, hidden]
        if self._checkpoint.causal:
            # Over the whole vocabulary, as the authors do, but of the last token alone.
            chances = self.model.lm_head(last)[:, list(reversed(self._answers))].log_softmax(1)
            logits: Tensor = chances[:, 1] - chances[:, 0]
            return logits[:, None]
        scores: Tensor = self.model.score(last)
        relevant = self._checkpoint.relevant
        return scores if relevant is None else (scores[:, relevant] - scores[:, 1 - relevant])[:, None]

    def graph(self, dtype: torch.dtype, max_length: int) -> nn.Module:
        """See `Network`."""
        if self._checkpoint.causal:
            head, (relevant, irrelevant) = self.model.lm_head.weight, self._answers
            score = head[relevant] - head[irrelevant]
        else:
            head, label = self.model.score.weight, self._checkpoint.relevant
            score = head[0] if label is None else head[label] - head[1 - label]
        return DecoderGraph(self.model.model, score, max_length=max_length, dtype=dtype).eval()
