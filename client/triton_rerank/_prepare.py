"""From rows to request parts: sort by length, cut into parts of similar length, encode as Triton's BYTES."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._errors import InvalidRequestError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""What client and server let through in one message, either way."""

_ROOM_FOR_REST = 64 * 1024  # names, shapes and parameters beside the texts
_CELL_HEADER = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server says once, before the first request is cut."""

    rows: int
    """Rows in one request."""
    default_max_length: int = 512


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that travel in one request."""

    rows: tuple[int, ...]
    """Places of the rows in the list that was cut; the answer's rows come in this order."""
    queries: bytes
    documents: bytes
    """BYTES tensors [num_pairs, 1]: each cell its length, uint32 little-endian, then its UTF-8."""


def cut_rows(
    queries: bytes | list[bytes], documents: Sequence[bytes], max_rows: int, names: str = "documents"
) -> list[Part]:
    """Cut rows into parts of similar length, the longest first.

    A request is padded to its longest row, so rows of similar length belong together. UTF-8 bytes stand in
    for
    tokens: over Latin, CJK, Arabic and Thai text they follow an XLM-R tokenizer's counts more closely than
    characters do, since scripts with 3-byte characters also need more tokens per character.

    Args:
        queries: One query for all rows, or one for each.
        documents: Texts in UTF-8.
        max_rows: Rows in a part at most. Fewer where the texts would outgrow a message.
        names: What the caller calls the rows, for the message of a text that no message can hold.

    Raises:
        InvalidRequestError: A row alone is larger than a message may be.
    """
    if isinstance(queries, bytes):
        sizes = [len(document) for document in documents]
        overhead = len(queries) + 2 * _CELL_HEADER
    else:
        sizes = [len(query) + len(document) for query, document in zip(queries, documents, strict=True)]
        overhead = 2 * _CELL_HEADER
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    parts = []
    for rows in _groups(order, sizes, overhead, max_rows, names):
        if isinstance(queries, bytes):
            query_cells = encode_cell(queries) * len(rows)
        else:
            query_cells = encode_cells([queries[row] for row in rows])
        parts.append(Part(tuple(rows), query_cells, encode_cells([documents[row] for row in rows])))
    return parts


def _groups(order: list[int], sizes: list[int], overhead: int, max_rows: int, names: str) -> list[list[int]]:
    if not order:
        return []
    room = MAX_MESSAGE_BYTES - _ROOM_FOR_REST
    largest = sizes[order[0]] + overhead
    if largest > room:
        raise InvalidRequestError(
            f"{names}[{order[0]}] needs a message of {largest:,} bytes, the limit is {room:,}; "
            "shorten the text: a model reads its first few thousand words at most"
        )
    rows_each = -(-len(order) // -(-len(order) // max_rows))  # as even as the number of parts allows
    if largest * rows_each <= room:
        return [order[at : at + rows_each] for at in range(0, len(order), rows_each)]
    groups: list[list[int]] = []
    held = room + 1
    for row in order:
        need = sizes[row] + overhead
        if held + need > room or len(groups[-1]) == rows_each:
            groups.append([])
            held = 0
        groups[-1].append(row)
        held += need
    return groups


def encode_cell(text: bytes) -> bytes:
    """One cell of a BYTES tensor."""
    return len(text).to_bytes(_CELL_HEADER, "little") + text


def encode_cells(texts: Sequence[bytes]) -> bytes:
    """The raw contents of a BYTES tensor, its rows in order."""
    pieces = [b""] * (2 * len(texts))
    pieces[0::2] = [len(text).to_bytes(_CELL_HEADER, "little") for text in texts]
    pieces[1::2] = texts
    return b"".join(pieces)
