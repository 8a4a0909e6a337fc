"""The computation of `rerank` without I/O: rows out, scores in, the ordered results at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.batching import Limits, Part, Scores, cut_rows, estimate_tokens, parameters
from triton_rerank.ranking.chunking import count_parts, split
from triton_rerank.ranking.documents import Inputs, TextOf, read_text, text_reader
from triton_rerank.ranking.relevance import Relevance
from triton_rerank.ranking.validation import (
    MAX_DOCUMENTS,
    check_cascade,
    check_instruction,
    check_length,
    check_long_documents,
    check_priority,
    check_query_length,
    check_relevance_score,
    check_top_n,
)
from triton_rerank.types import Cascade, Chunk, DocumentT, LongDocuments, RerankResult, Usage

SIGMOID = Relevance()

_SPECIAL_TOKENS = 4  # <s> query </s></s> document </s>
_SMALLEST_PART = 8  # characters; a part below it is left truncated
_FILL = 0.9  # of the room for document tokens that a part aims at: estimates err
_SURELY_LONG = 1.3  # times the room, from which on a document is cut before the server has seen it


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """Checked options of one rerank call."""

    top_n: int | None = None
    max_length: int | None = None
    query_max_length: int | None = None
    min_relevance_score: float | None = None
    long_documents: LongDocuments = "truncate"
    text_from: TextOf = read_text
    priority: int | None = None
    instruction: str | None = None
    cascade: Cascade | None = None

    @classmethod
    def check(cls, given: Mapping[str, object]) -> RerankOptions:
        """The options, or an error for the first one that cannot be used.

        Args:
            given: `CallOptions` without `timeout`.

        Raises:
            InvalidRequestError: A value is unusable.
            TypeError: There is no such option.
        """
        for name in given:
            if name not in _CHECKS:
                raise TypeError(
                    f"rerank has no option {name!r}; its options: {', '.join(sorted([*_CHECKS, 'timeout']))}"
                )
        return cls(**{name: _CHECKS[name](value) for name, value in given.items()})


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "top_n": check_top_n,
    "max_length": partial(check_length, name="max_length"),
    "query_max_length": check_query_length,
    "min_relevance_score": check_relevance_score,
    "long_documents": check_long_documents,
    "text_from": text_reader,
    "priority": check_priority,
    "instruction": check_instruction,
    "cascade": check_cascade,
}


@dataclass(slots=True)
class _Piece:
    """A document, or a part of one, as a row."""

    document: int
    start: int
    end: int
    logit: float = 0.0
    num_tokens: int = 0
    truncated: bool = False
    replaced: bool = False
    """Whether smaller parts replace it."""


class RerankJob(Generic[DocumentT]):
    """One query against documents, scored by one model; long documents in parts if asked for.

    Args:
        inputs: The query and all documents.
        options: Of the call.
        chosen: Indices of the documents to score, ascending; all of them if None.
    """

    def __init__(self, inputs: Inputs[DocumentT], options: RerankOptions, chosen: Sequence[int] | None = None) -> None:
        self._options = options
        self._inputs = inputs
        self._chosen = range(len(inputs.documents)) if chosen is None else chosen
        self.restart()

    def restart(self) -> None:
        """Forget all rows and their scores."""
        self._pieces: list[_Piece] = []
        self._new: list[_Piece] = []
        self._started = False

    @property
    def parameters(self) -> dict[str, int | str]:
        """Request parameters; what is not given is not sent, so that the server's defaults hold."""
        options = self._options
        return parameters(options.max_length, options.query_max_length, options.priority, options.instruction)

    @property
    def needs_info(self) -> bool:
        """Whether the server must be asked first: for the length to cut parts to, or for its priorities."""
        needs_length = self._options.long_documents == "chunk" and self._options.max_length is None
        return needs_length or self._options.priority is not None or self._options.instruction is not None

    def next_round(self, limits: Limits) -> list[Part]:
        """The rows to score next; an empty list when all are scored.

        Truncating takes one round. Parts take more if the server reports that one was still truncated: it is
        split again, so that in the end no token of a document went unread.
        """
        if not self._started:
            self._started = True
            self._new = self._first_pieces(limits)
        else:
            self._new = self._smaller_pieces(limits)
        if len(self._pieces) + len(self._new) > MAX_DOCUMENTS and self._options.long_documents == "chunk":
            raise InvalidRequestError(
                f"the documents make more than {MAX_DOCUMENTS:,} parts; pass fewer, a larger max_length, or "
                'long_documents="truncate"'
            )
        self._pieces += self._new
        return cut_rows(self._inputs.query, [self._bytes_of(piece) for piece in self._new], limits.rows)

    def take(self, part: Part, scores: Scores) -> None:
        """Store a part's answer at the indices of its rows."""
        new = self._new
        for row, logit, num_tokens, truncated in zip(
            part.rows, scores.logits, scores.num_tokens, scores.truncated, strict=True
        ):
            piece = new[row]
            piece.logit, piece.num_tokens, piece.truncated = logit, num_tokens, bool(truncated)

    def best(self, count: int) -> list[int]:
        """Indices of the `count` documents with the highest logits, ascending."""
        return sorted(piece.document for piece in self._ordered()[0][:count])

    def results(
        self, relevance: Relevance = SIGMOID, stage: str = "", without: Collection[int] = (), num_before: int = 0
    ) -> tuple[RerankResult[DocumentT], ...]:
        """The documents by descending logit; equal logits keep the caller's order.

        Args:
            relevance: Makes a relevance score of a logit.
            stage: Name of the model.
            without: Indices of documents to leave out.
            num_before: Results that precede these; they count for `top_n` and for the ranks.
        """
        kept, parts = self._ordered()
        if without:
            kept = [piece for piece in kept if piece.document not in without]
        if self._options.min_relevance_score is not None:
            kept = [piece for piece in kept if relevance(piece.logit) >= self._options.min_relevance_score]
        if self._options.top_n is not None:
            kept = kept[: max(0, self._options.top_n - num_before)]
        return tuple(
            self._result(piece, rank, parts.get(piece.document, ()), relevance, stage)
            for rank, piece in enumerate(kept, start=num_before + 1)
        )

    def usage(self) -> Usage:
        """Totals of the call."""
        tokens = sum(piece.num_tokens for piece in self._pieces)
        return Usage(len(self._chosen), len(self._pieces), tokens, len(self.truncated()))

    def truncated(self) -> set[int]:
        """Indices of the documents that were truncated."""
        return {piece.document for piece in self._pieces if piece.truncated and not piece.replaced}

    def _ordered(self) -> tuple[list[_Piece], dict[int, list[_Piece]]]:
        """The best piece of each document, by descending logit; and document -> its pieces if any document was cut."""
        kept = [piece for piece in self._pieces if not piece.replaced]
        parts: dict[int, list[_Piece]] = {}
        if len(kept) > len(self._chosen):  # some were cut
            for piece in kept:
                parts.setdefault(piece.document, []).append(piece)
            kept = [max(parts[document], key=_logit_of) for document in self._chosen]
        kept.sort(key=_logit_of, reverse=True)  # stable; raw logits: relevance scores tie at their ends
        return kept, parts

    def _result(
        self, best: _Piece, rank: int, parts: Sequence[_Piece], relevance: Relevance, stage: str
    ) -> RerankResult[DocumentT]:
        text, chunk, num_tokens, truncated = self._inputs.texts[best.document], None, best.num_tokens, best.truncated
        if len(parts) > 1:
            index = sum(piece.start < best.start for piece in parts)
            chunk = Chunk(text[best.start : best.end], best.start, best.end, index, len(parts))
            num_tokens = sum(piece.num_tokens for piece in parts)
            truncated = any(piece.truncated for piece in parts)
        return RerankResult(
            index=best.document,
            rank=rank,
            relevance_score=relevance(best.logit),
            logit=best.logit,
            document=self._inputs.documents[best.document],
            text=text,
            num_tokens=num_tokens,
            truncated=truncated,
            chunk=chunk,
            stage=stage,
        )

    def _bytes_of(self, piece: _Piece) -> bytes:
        encoded = self._inputs.encoded[piece.document]
        text = self._inputs.texts[piece.document]
        return encoded if piece.end - piece.start == len(text) else text[piece.start : piece.end].encode()

    def _room(self, limits: Limits) -> float:
        """Tokens of the document that a part should hold."""
        length = self._options.max_length or limits.default_max_length
        query = estimate_tokens(self._inputs.query)
        if self._options.query_max_length is not None:
            query = min(query, self._options.query_max_length or length / 2)
        # The server cuts the query to three quarters of max_length at most, so a quarter is always left.
        return max(length - query - _SPECIAL_TOKENS, length / 4 - _SPECIAL_TOKENS, 1.0) * _FILL

    def _first_pieces(self, limits: Limits) -> list[_Piece]:
        if self._options.long_documents == "truncate":
            return [_Piece(document, 0, len(self._inputs.texts[document])) for document in self._chosen]
        room, pieces = self._room(limits), []
        for document in self._chosen:
            text = self._inputs.texts[document]
            tokens = estimate_tokens(self._inputs.encoded[document])
            count = count_parts(tokens, room) if tokens > room * _SURELY_LONG else 1
            pieces += [_Piece(document, start, end) for start, end in split(text, 0, len(text), count)]
        return pieces

    def _smaller_pieces(self, limits: Limits) -> list[_Piece]:
        if self._options.long_documents == "truncate":
            return []
        length, room = self._options.max_length or limits.default_max_length, self._room(limits)
        pieces = []
        for piece in self._new:
            # A row below max_length lost tokens of its query alone: cutting the document would not help.
            if piece.truncated and piece.num_tokens >= length and piece.end - piece.start > _SMALLEST_PART:
                count = max(2, count_parts(estimate_tokens(self._bytes_of(piece)), room))
                spans = split(self._inputs.texts[piece.document], piece.start, piece.end, count)
                pieces += [_Piece(piece.document, start, end) for start, end in spans]
                piece.replaced = True
        return pieces


def _logit_of(piece: _Piece) -> float:
    return piece.logit
