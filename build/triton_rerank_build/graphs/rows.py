"""The rows of a checkpoint: its layout, read off the tokenizer's own template, and pairs of text laid out by it."""

from typing import TYPE_CHECKING

from triton_rerank_build.checkpoints.layout import Row, TextEnds, TextLayout

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def template_layout(tokenizer: "Tokenizer", pad_id: int, *, token_types: bool) -> TextLayout:
    """The layout of a pair by the template of a tokenizer.json, as transformers lays it out.

    Args:
        tokenizer: Without truncation and padding.
        pad_id: Fills a row.
        token_types: Whether the network reads the types that the template gives.
    """
    encoding = tokenizer.encode("a", "b")
    tokens = list(zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True))
    sides = [side for side, _, _ in tokens]  # 0 = query, 1 = document, None = special token
    query, document = sides.index(0), sides.index(1)
    groups = [
        [token for token in group if token[0] is None]
        for group in (tokens[:query], tokens[query:document], tokens[document:])
    ]
    before, between, after = (tuple(token_id for _, token_id, _ in group) for group in groups)
    of_before, of_between, of_after = ([kind for _, _, kind in group] for group in groups)
    types = (*of_before, tokens[query][2], *of_between, tokens[document][2], *of_after)
    return TextLayout(before, between, after, pad_id, types if token_types and any(types) else ())


def encode_pair(
    tokenizer: "Tokenizer",
    layout: TextLayout,
    query: str,
    document: str,
    *,
    query_length: int | None = None,
    length: int | None = None,
) -> Row:
    """Tokens of a pair, including its special tokens.

    Args:
        tokenizer: Without truncation and padding.
        layout: Of the checkpoint.
        query: The search text.
        document: The text to rank.
        query_length: Most tokens of the query; None for no limit.
        length: Most tokens of the pair; only the document is cut. None for no limit.
    """
    told = layout.instruction
    instruction = encode_text(tokenizer, told.default, told.text) if told else []
    first = encode_text(tokenizer, query, layout.query, query_length)
    room = None if length is None else max(0, length - layout.num_special - len(instruction) - len(first))
    return layout.row(first, encode_text(tokenizer, document, layout.document, room), instruction)


def encode_text(tokenizer: "Tokenizer", text: str, ends: TextEnds, length: int | None = None) -> list[int]:
    """Token ids of a text with its ends; at most `length`, the end kept."""
    ids: list[int] = tokenizer.encode(ends.prefix + text + ends.suffix, add_special_tokens=False).ids
    if length is None or len(ids) <= length:
        return ids
    return [*ids[: max(0, length - len(ends.end))], *ends.end]
