"""How a late-interaction checkpoint turns texts into rows of tokens, and which of their vectors count.

ColBERT's rules are those of its authors' code (stanford-futuredata/ColBERT): a query is `[CLS] [unused0] text [SEP]`,
filled up to 32 ids with [MASK] that nobody attends to and that are scored; a document is `[CLS] [unused1] text [SEP]`,
and the vectors of its 32 ASCII punctuation marks are not scored.
"""

import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from triton_rerank_build.errors import UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from triton_rerank_build.checkpoints.resolve import Checkpoint

# Tokens of a query where the checkpoint does not say: long questions fit, and a query costs a product per token.
QUERY_LENGTH = 128


@dataclass(frozen=True)
class LateOptions:
    """What a caller says of an encoder that is no ColBERT checkpoint.

    Attributes:
        query_prefix: Stands before every query, such as "query: ".
        document_prefix: Stands before every document.
        special_scored: Whether the vectors of the special tokens around a text count.
        query_length: Longest query in tokens; `QUERY_LENGTH`, or ColBERT's own, if None.
    """

    query_prefix: str = ""
    document_prefix: str = ""
    special_scored: bool = False
    query_length: int | None = None


# multilingual-e5-small was trained with these prefixes, for one vector a text, its mean. Its token vectors serve late
# interaction without further training, which shows how the parts work together; for figures that matter serve a
# ColBERT checkpoint.
DEMO_LATE_OPTIONS = LateOptions(query_prefix="query: ", document_prefix="passage: ")


@dataclass(frozen=True)
class Side:
    """A query's row, or a document's.

    Attributes:
        prefix: Text before the text.
        before: Token ids before it.
        after: Token ids after it.
        max_length: Longest row; the text is cut from its right end.
        fill_id: Fills a row up to `max_length`; None if rows are as long as their text.
        fill_attended: Whether other tokens attend to these.
        special_scored: Whether the vectors of `before` and `after` count.
    """

    prefix: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    max_length: int
    fill_id: int | None
    fill_attended: bool
    special_scored: bool


@dataclass(frozen=True)
class LateSettings:
    """Everything that the served models must know of the checkpoint beside its tokenizer and graph.

    Attributes:
        query: How queries are read.
        document: How documents are read.
        unscored_ids: Token ids of documents whose vectors do not count.
        pad_id: Fills rows that are computed together.
        vocab_size: Token ids are below it.
        dim: Of a vector.
    """

    query: Side
    document: Side
    unscored_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    dim: int

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LateSettings":
        """From what JSON makes of one."""
        sides = {name: Side(**_tuples(content[name])) for name in ("query", "document")}
        return cls(**{**_tuples(content), **sides})

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: lists for tuples."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def make_settings(
    source: "Checkpoint",
    tokenizer: "Tokenizer",
    options: LateOptions,
    max_length: int | None,
    *,
    pad_id: int,
    vocab_size: int,
    dim: int,
) -> LateSettings:
    """The settings of a checkpoint.

    Args:
        source: The checkpoint.
        tokenizer: Its own.
        options: For an encoder that is no ColBERT checkpoint; of ColBERT only `query_length` counts.
        max_length: Longest document in tokens; what the checkpoint says if None.
        pad_id: See `LateSettings`.
        vocab_size: See `LateSettings`.
        dim: See `LateSettings`.

    Raises:
        UnsupportedModelError: A length is out of range, a token is missing, or the similarity is not the cosine.
    """
    if source.colbert:
        query, document, unscored = _colbert_sides(source, tokenizer, options, max_length)
    else:
        before, after = special_ids(tokenizer)
        lengths = min(options.query_length or QUERY_LENGTH, source.limit), max_length or source.limit
        prefixes = options.query_prefix, options.document_prefix
        query, document = (
            Side(prefix, before, after, length, None, False, options.special_scored)
            for prefix, length in zip(prefixes, lengths, strict=True)
        )
        unscored = ()
    for name, side in (("query", query), ("document", document)):
        low = len(side.before) + len(side.after) + 1
        if not low <= side.max_length <= source.limit:
            raise UnsupportedModelError(
                f"{side.max_length} tokens of a {name} are out of range: {source.name} takes {low} to {source.limit}"
            )
    return LateSettings(query, document, unscored, pad_id, vocab_size, dim)


def _colbert_sides(
    source: "Checkpoint", tokenizer: "Tokenizer", options: LateOptions, max_length: int | None
) -> tuple[Side, Side, tuple[int, ...]]:
    from triton_rerank_build.checkpoints.resolve import COLBERT_FILE, read_json

    said = read_json(source.folder / COLBERT_FILE, source.name)
    if (similarity := said.get("similarity", "cosine")) != "cosine":
        raise UnsupportedModelError(f"{COLBERT_FILE} of {source.name} says similarity {similarity!r}; served is cosine")
    (start, *_), (end, *_) = special_ids(tokenizer)
    query = Side(
        prefix="",
        before=(start, _id_of(tokenizer, said.get("query_token_id", "[unused0]"), source.name)),
        after=(end,),
        max_length=options.query_length or int(said.get("query_maxlen", 32)),
        fill_id=_id_of(tokenizer, "[MASK]" if source.family == "bert" else "<mask>", source.name),
        fill_attended=bool(said.get("attend_to_mask_tokens", False)),
        special_scored=True,
    )
    document = Side(
        prefix="",
        before=(start, _id_of(tokenizer, said.get("doc_token_id", "[unused1]"), source.name)),
        after=(end,),
        max_length=max_length or int(said.get("doc_maxlen", 220)),
        fill_id=None,
        fill_attended=False,
        special_scored=True,
    )
    marks = string.punctuation if said.get("mask_punctuation", True) else ""
    unscored = {tokenizer.encode(mark, add_special_tokens=False).ids[0] for mark in marks}
    return query, document, tuple(sorted(unscored))


def special_ids(tokenizer: "Tokenizer") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special token ids before and after a single text, read off the tokenizer's own template."""
    text = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.post_process(text)
    place = next(at for at, special in enumerate(whole.special_tokens_mask) if not special)
    return tuple(whole.ids[:place]), tuple(whole.ids[place + len(text) :])


def _id_of(tokenizer: "Tokenizer", token: str, name: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise UnsupportedModelError(f"tokenizer.json of {name} has no token {token!r}, which its ColBERT needs")
    return token_id


def make_row(tokenizer: "Tokenizer", side: Side, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and for each 1 if the others attend to it, else 0."""
    ids = tokenizer.encode(side.prefix + text, add_special_tokens=False).ids
    row = [*side.before, *ids[: side.max_length - len(side.before) - len(side.after)], *side.after]
    missing = side.max_length - len(row) if side.fill_id is not None else 0
    return row + [side.fill_id or 0] * missing, [1] * len(row) + [int(side.fill_attended)] * missing
