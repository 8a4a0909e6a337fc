"""Splitting a long text into overlapping parts at natural boundaries."""

from __future__ import annotations

import math

OVERLAP = 0.125
"""Share of a part that the next one repeats, so that a sentence at the boundary is whole in one of them."""

_REACH = 0.1  # how far, as a share of a part, an end may move back to a better boundary

# Better boundaries first: a paragraph, a line, a sentence (Latin, CJK, Arabic, Devanagari), a clause, a space.
_SEAMS = (
    ("\n\n",),
    ("\n",),
    (". ", "! ", "? ", "。", "！", "？", "؟ ", "۔ ", "। "),
    ("; ", ", ", "，", "、", "،"),
    (" ",),
)


def count_parts(tokens: float, budget: float) -> int:
    """Number of overlapping parts of `budget` tokens that cover `tokens`."""
    if tokens <= budget:
        return 1
    return 1 + math.ceil((tokens - budget) / (budget * (1 - OVERLAP)))


def split(text: str, start: int, end: int, count: int) -> list[tuple[int, int]]:
    """Cut text[start:end] into about `count` overlapping spans of similar length.

    Returns:
        (start, end) of each span in order. Together they cover the whole; for a `count` above 1 each is shorter than
        the whole, unless that is a single character.
    """
    if count <= 1 or end - start <= 1:
        return [(start, end)]
    width = min(end - start - 1, math.ceil((end - start) / (1 + (count - 1) * (1 - OVERLAP))))
    spans = []
    opens = start
    while end - opens > width:
        closes = _seam_before(text, opens + width - int(width * _REACH), opens + width)
        spans.append((opens, closes))
        opens = _seam_after(text, closes - int(width * OVERLAP), closes)
    return [*spans, (opens, end)]


def _seam_before(text: str, low: int, high: int) -> int:
    """The best end of a part between `low` and `high`: the best kind of boundary, as late as possible."""
    for marks in _SEAMS:
        ends = [at + len(mark) for mark in marks if (at := text.rfind(mark, max(0, low - len(mark)), high)) >= 0]
        if ends and max(ends) >= low:
            return max(ends)
    return high


def _seam_after(text: str, low: int, high: int) -> int:
    """The best start of the next part between `low` and `high`: the best kind of boundary, as early as possible."""
    for marks in _SEAMS:
        starts = [at + len(mark) for mark in marks if (at := text.find(mark, max(0, low - len(mark)), high)) >= 0]
        if starts:
            return max(low, min(starts))
    return low
