"""Cutting a long text into overlapping parts at natural places."""

from __future__ import annotations

import math

OVERLAP = 0.125
"""Share of a part that the next one repeats, so that a sentence at the seam is whole in one of them."""

_REACH = 0.1  # how far, in parts, an end may move back to a better place

# Better places first: a paragraph, a line, a sentence (Latin, CJK, Arabic, Devanagari), a clause, a space.
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
    """Cut text[start:end] into `count` overlapping spans of similar length.

    Returns:
        (start, end) of each span in order. Together they cover the whole; each is shorter than the whole.
        Fewer than `count` if the text has fewer characters.
    """
    count = min(count, end - start)
    if count <= 1:
        return [(start, end)]
    width = (end - start) / (1 + (count - 1) * (1 - OVERLAP))
    step = width * (1 - OVERLAP)
    spans: list[tuple[int, int]] = []
    for place in range(count):
        opens = start + int(place * step)
        closes = end if place == count - 1 else max(opens + 1, start + math.ceil(place * step + width))
        if place < count - 1:
            closes = _seam_before(text, max(opens + 1, closes - int(width * _REACH)), closes)
        if spans:
            # From a natural place inside the overlap; never beyond the previous end, or text would be lost.
            opens = min(_seam_after(text, opens, spans[-1][1]), spans[-1][1])
        spans.append((opens, min(closes, end)))
    return [span for span in spans if span[0] < span[1]]


def _seam_before(text: str, low: int, high: int) -> int:
    """The best place in [low, high] to end a part."""
    for marks in _SEAMS:
        found = max(
            text.rfind(mark, low, high) + len(mark) if mark in text[low:high] else -1 for mark in marks
        )
        if found > low:
            return found
    return high


def _seam_after(text: str, low: int, high: int) -> int:
    """The best place in [low, high) to begin a part."""
    for marks in _SEAMS:
        places = [at + len(mark) for mark in marks if 0 <= (at := text.find(mark, low, high)) < high]
        if places and min(places) < high:
            return min(places)
    return low
