"""The families of networks that are exported, by `model_type` of config.json, and what config.json may leave out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        pad_token_id: Where config.json has none.
        counts_from_pad: Whether positions start at `pad_token_id` + 1, so that the rows up to there are never used.
        intermediate_size: Name of the width of the feed-forward network in config.json.
        intermediate_default: That width where config.json has none.
        most: Tokens of the longest pair, where the table of positions is longer.
        widest: Times that width, the width of a layer's widest state: 2 where both inputs of a gate are one projection.
        token_types: Whether the network has vectors of token types.
        examples: Published checkpoints.
    """

    pad_token_id: int = 0
    counts_from_pad: bool = False
    intermediate_size: str = "intermediate_size"
    intermediate_default: int = 3072
    widest: int = 1
    token_types: bool = True
    most: int | None = None
    examples: tuple[str, ...] = ()

    def limit(self, config: Mapping[str, Any]) -> int:
        """Tokens of the longest pair, by the table of positions.

        Raises:
            KeyError: config.json has no such table.
            TypeError: Its size is not a number.
            ValueError: Likewise.
        """
        limit = int(config["max_position_embeddings"])
        if self.counts_from_pad:
            limit -= self.padding(config) + 1
        return limit if self.most is None else min(limit, self.most)

    def padding(self, config: Mapping[str, Any]) -> int:
        """The padding id; the class default of transformers where config.json has none."""
        given = config.get("pad_token_id")
        return self.pad_token_id if given is None else int(given)


# Post-LN encoders with absolute positions: the network of `graphs.cross_encoder`, packed on GPUs. Defaults are those of
# transformers' configuration classes.
ENCODERS: Mapping[str, Family] = {
    "bert": Family(examples=("cross-encoder/ms-marco-MiniLM-L6-v2",)),
    "roberta": Family(1, True, examples=("cross-encoder/quora-distilroberta-base",)),
    "xlm-roberta": Family(1, True, examples=("BAAI/bge-reranker-v2-m3", "BAAI/bge-reranker-base")),
    "camembert": Family(1, True, examples=("antoinelouis/crossencoder-camembert-base-mmarcoFR",)),
    "electra": Family(intermediate_default=1024, examples=("cross-encoder/ms-marco-electra-base",)),
    "distilbert": Family(intermediate_size="hidden_dim", token_types=False),
}
# The authors of Qwen3-Reranker score up to 8,192 tokens, with longer tables of positions.
_DECODER_LIMIT = 8192
# Language models that answer a prompt of `prompts`: the network of `graphs.decoder`.
DECODERS: Mapping[str, Family] = {
    "qwen3": Family(most=_DECODER_LIMIT, token_types=False, examples=("Qwen/Qwen3-Reranker-0.6B",)),
}
# Pre-LN encoders with rotary positions: the network of `graphs.modernbert`.
MODERN: Mapping[str, Family] = {
    "modernbert": Family(
        50_283,
        intermediate_default=1152,
        widest=2,
        token_types=False,
        examples=("Alibaba-NLP/gte-reranker-modernbert-base", "cross-encoder/ettin-reranker-150m-v1"),
    ),
}
FAMILIES: Mapping[str, Family] = {**ENCODERS, **MODERN, **DECODERS}
# Of the families that transformers knows and this project does not, those whose positions start after the padding id.
_COUNTING = ("mpnet", "ibert", "longformer", "roberta-prelayernorm", "xlm-roberta-xl", "xmod", "data2vec-text")
_OTHER, _OTHER_COUNTING = Family(), Family(1, counts_from_pad=True)


def family_of(model_type: str) -> Family:
    """The facts of a family; of one that is not in `FAMILIES`, what transformers' own network needs."""
    return FAMILIES.get(model_type, _OTHER_COUNTING if model_type in _COUNTING else _OTHER)
