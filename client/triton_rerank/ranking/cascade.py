"""The stages of a rerank call: one model, or in a cascade a fast one before it. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic

from triton_rerank.errors import (
    ClientStateError,
    InvalidRequestError,
    RequestCancelledError,
    RerankError,
)
from triton_rerank.ranking.documents import Inputs
from triton_rerank.ranking.relevance import Relevance
from triton_rerank.ranking.rerank import SIGMOID, RerankJob, RerankOptions
from triton_rerank.types import DocumentT, RerankResult, Stage, Timing, Usage

FIRST_STAGE = "the first stage"
"""What messages call it."""


@dataclass(slots=True)
class StageJob(Generic[DocumentT]):
    """One model's share of a call."""

    model: str
    job: RerankJob[DocumentT]
    title: str = ""
    """Opens the messages of its errors; empty if the call has one stage."""
    optional: bool = False
    """Whether the call goes on without it if it fails."""
    relevance: Relevance = SIGMOID
    timing: Timing | None = None
    """Set when it is done."""
    version: str = ""

    def done(self, relevance: Relevance, timing: Timing, version: str) -> None:
        """Record that all its documents are scored."""
        self.relevance, self.timing, self.version = relevance, timing, version

    def survives(self, error: RerankError) -> bool:
        """Whether the call goes on without this stage after an error."""
        return self.optional and not isinstance(error, (RequestCancelledError, ClientStateError))

    def named(self, error: RerankError) -> RerankError:
        """`error` with the stage's title."""
        return type(error)(f"{self.title}: {error}") if self.title else error


class CascadeJob(Generic[DocumentT]):
    """A rerank call: its stages one after another, and the order that follows from them.

    Args:
        query: The search text.
        documents: The caller's.
        options: Of the call.
        model: The client's model, which the last stage asks.

    Raises:
        InvalidRequestError: The query or a document is unusable, or both stages have the same model.
    """

    def __init__(self, query: str, documents: Iterable[DocumentT], options: RerankOptions, model: str) -> None:
        if options.cascade is not None and options.cascade.first == model:
            raise InvalidRequestError(
                f"cascade.first is {model!r}, which is the client's own model; name a faster one, or leave out cascade"
            )
        self._options = options
        self._inputs = Inputs.read(query, documents, options.text_from)
        self._model = model
        self._done: list[StageJob[DocumentT]] = []
        self._chosen: list[int] = []

    def stages(self) -> Iterator[StageJob[DocumentT]]:
        """The stages to run, each before the next is asked for; none without documents.

        A stage that was not marked as done has failed, and the next one scores all documents.
        """
        chosen, cascade, count = None, self._options.cascade, len(self._inputs.documents)
        if cascade is not None and (keep := number_kept(cascade.keep, count)) < count:
            first = StageJob(
                cascade.first, self._first_job(), f"{cascade.first}, {FIRST_STAGE}", optional=cascade.fallback
            )
            yield first
            if first.timing is not None:
                chosen = self._chosen = first.job.best(keep)
                self._done.append(first)
        if count:
            title = "" if chosen is None else f"{self._model}, the second stage"
            last = StageJob(self._model, RerankJob(self._inputs, self._options, chosen), title)
            yield last
            self._done.append(last)

    def results(self) -> tuple[RerankResult[DocumentT], ...]:
        """The documents that the last stage scored, by its logits, then the others by those of the first stage.

        With `min_relevance_score` there are no others: their scores are on another scale.
        """
        if not self._done:
            return ()
        *firsts, last = self._done
        found = last.job.results(last.relevance, last.model)
        if self._options.min_relevance_score is None:
            for first in firsts:
                found += first.job.results(first.relevance, first.model, set(self._chosen), len(found))
        return found

    def usage(self) -> Usage:
        """Totals of the call."""
        each = [stage.job.usage() for stage in self._done]
        cut = {index for stage in self._done for index in stage.job.truncated()}
        pairs, tokens = sum(usage.num_pairs for usage in each), sum(usage.num_tokens for usage in each)
        return Usage(len(self._inputs.documents), pairs, tokens, len(cut))

    def reports(self) -> tuple[Stage, ...]:
        """What each stage did."""
        return tuple(
            Stage(stage.model, stage.job.usage(), stage.timing, stage.version)
            for stage in self._done
            if stage.timing is not None
        )

    def _first_job(self) -> RerankJob[DocumentT]:
        """All documents with the first stage's own lengths, priority and instruction: they are other models'."""
        return RerankJob(
            self._inputs,
            replace(
                self._options,
                max_length=None,
                query_max_length=None,
                min_relevance_score=None,
                priority=None,
                instruction=None,
            ),
        )


def number_kept(keep: int | float, count: int) -> int:
    """How many of `count` documents the last stage scores: `keep`, or that share of them, rounded up."""
    # Without the small difference 0.07 * 100, which is 7.000000000000001, would keep 8.
    return keep if isinstance(keep, int) else max(1, math.ceil(keep * count - 1e-9))
