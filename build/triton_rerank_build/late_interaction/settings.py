"""How a late-interaction checkpoint tokenizes texts, and which token vectors are scored.

ColBERT's rules are those of its authors' code (stanford-futuredata/ColBERT): a query is `[CLS] [unused0] text [SEP]`,
filled up to 32 ids with [MASK], which other tokens do not attend to and whose vectors are scored; a document is
`[CLS] [unused1] text [SEP]`, and the vectors of the 32 ASCII punctuation marks are not scored.
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

# Default limit of a query's tokens: long questions fit, and each token costs one product per document token.
QUERY_LENGTH = 128


@dataclass(frozen=True)
class LateOptions:
    """Options for an encoder that is not a ColBERT checkpoint.

    Attributes:
        query_prefix: Put before every query, such as "query: ".
        document_prefix: Put before every document.
        special_scored: Whether the vectors of the special tokens around a text are scored.
        query_length: Longest query in tokens; `QUERY_LENGTH`, or ColBERT's own, if None.
    """

    query_prefix: str = ""
    document_prefix: str = ""
    special_scored: bool = False
    query_length: int | None = None


# multilingual-e5-small was trained with these prefixes, for one mean vector per text. Its token vectors are not trained
# for late interaction: good for a demonstration; for quality, serve a ColBERT checkpoint.
DEMO_LATE_OPTIONS = LateOptions(query_prefix="query: ", document_prefix="passage: ")


@dataclass(frozen=True)
class Side:
    """How queries, or documents, become rows of tokens.

    Attributes:
        prefix: Text put before the query or document.
        before: Token ids before the text.
        after: Token ids after the text.
        max_length: Longest row in tokens; the text is cut from its right end.
        fill_id: Fills a row up to `max_length`; None if rows are not filled.
        fill_attended: Whether other tokens attend to `fill_id`.
        special_scored: Whether the vectors of `before` and `after` are scored.
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
    """What the served models need to know of the checkpoint, beside its tokenizer and graph.

    Attributes:
        query: Rows of queries.
        document: Rows of documents.
        unscored_ids: Token ids of documents whose vectors are not scored.
        pad_id: Fills the rows of a batch to equal length.
        vocab_size: All token ids are below it.
        dim: Length of a vector.
    """

    query: Side
    document: Side
    unscored_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    dim: int

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LateSettings":
        """Build from parsed JSON."""
        sides = {name: Side(**_tuples(content[name])) for name in ("query", "document")}
        return cls(**{**_tuples(content), **sides})

    def to_dict(self) -> dict[str, Any]:
        """The content as JSON represents it, with lists for tuples."""
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
        tokenizer: The checkpoint's tokenizer.
        options: Of ColBERT checkpoints only `query_length` is used.
        max_length: Longest document in tokens; the checkpoint's own limit if None.
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
    from triton_rerank_build.checkpoints.configuration import read_json
    from triton_rerank_build.checkpoints.resolve import COLBERT_FILE

    said = read_json(source.folder / COLBERT_FILE, source.name)
    if (similarity := said.get("similarity", "cosine")) != "cosine":
        raise UnsupportedModelError(
            f"{COLBERT_FILE} of {source.name} has similarity {similarity!r}; only cosine is supported"
        )
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
    """Special token ids before and after a single text, from the tokenizer's template."""
    text = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.post_process(text)
    start = next(index for index, special in enumerate(whole.special_tokens_mask) if not special)
    return tuple(whole.ids[:start]), tuple(whole.ids[start + len(text) :])


def _id_of(tokenizer: "Tokenizer", token: str, name: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise UnsupportedModelError(f"tokenizer.json of {name} has no token {token!r}, which its ColBERT settings name")
    return token_id


def make_row(tokenizer: "Tokenizer", side: Side, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the attention mask: 1 where other tokens attend to the id, else 0."""
    ids = tokenizer.encode(side.prefix + text, add_special_tokens=False).ids
    row = [*side.before, *ids[: side.max_length - len(side.before) - len(side.after)], *side.after]
    missing = side.max_length - len(row) if side.fill_id is not None else 0
    return row + [side.fill_id or 0] * missing, [1] * len(row) + [int(side.fill_attended)] * missing
