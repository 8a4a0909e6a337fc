"""The computation of `score` without I/O: pairs out, logits in."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.batching import Limits, Part, Scores, cut_rows, parameters
from triton_rerank.ranking.validation import (
    check_instruction,
    check_length,
    check_many,
    check_priority,
    check_query,
    check_query_length,
    encode_text,
    kind_of,
)


class ScoreJob:
    """Logits of pairs, in their order."""

    def __init__(
        self,
        pairs: Iterable[Any],
        max_length: object = None,
        query_max_length: object = None,
        priority: object = None,
        instruction: object = None,
    ) -> None:
        self.parameters: dict[str, int | str] = parameters(
            check_length(max_length, "max_length"),
            check_query_length(query_max_length),
            check_priority(priority),
            check_instruction(instruction),
        )
        # For the number of priorities, and whether the model takes instructions.
        self.needs_info: bool = priority is not None or instruction is not None
        checked = [
            _check_pair(pair, index) for index, pair in enumerate(check_many(pairs, "pairs", "pairs", limit=None))
        ]
        self._queries = [query for query, _ in checked]
        self._documents = [document for _, document in checked]
        self._sent = False
        self.logits: array[float] = array("f", bytes(4 * len(checked)))

    def next_round(self, limits: Limits) -> list[Part]:
        """All pairs the first time, nothing after."""
        if self._sent:
            return []
        self._sent = True
        return cut_rows(self._queries, self._documents, limits.rows, "pairs")

    def restart(self) -> None:
        """Have all pairs sent again."""
        self._sent = False

    def take(self, part: Part, scores: Scores) -> None:
        """Put a part's logits into their indexs."""
        for row, logit in zip(part.rows, scores.logits, strict=True):
            self.logits[row] = logit


def _check_pair(pair: Any, index: int) -> tuple[bytes, bytes]:  # noqa: ANN401  # it is what is checked
    name = f"pairs[{index}]"
    # numpy's rows are no Sequence.
    is_row = isinstance(pair, Collection) and hasattr(pair, "__getitem__")
    if not is_row or isinstance(pair, (str, bytes, Mapping)) or len(pair) != 2:
        raise InvalidRequestError(f"{name} is not a pair (got {kind_of(pair)}); pass (query, document)")
    query, document = pair
    check_query(query, f"{name}[0]")
    if not isinstance(document, str):
        raise InvalidRequestError(f"{name}[1] is not text (got {kind_of(document)}); pass a str")
    return encode_text(query, f"{name}[0]"), encode_text(document, f"{name}[1]")
