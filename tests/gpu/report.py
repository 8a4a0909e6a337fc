"""The report of `questions.py`: one answer a question, as Markdown and as JSON, and the bars that speed is held to."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

NOT_ON_A_CPU = "not on a CPU"

QUESTIONS = (
    "Does attention run as flash attention?",
    "Are the logits within 2e-2 of the reference file on the CPU?",
    "Are BiasGelu and SkipLayerNormalization in the optimized fp16 graph?",
    "Does ONNX Runtime copy integers alone between host and card?",
    "Is the peak of memory what build's arithmetic says?",
    "How fast is it, beside the padded graph and sentence-transformers on the same card?",
    "Is the largest batch computed right, and what do two instances give?",
)

# Milliseconds of 100 documents of 180 tokens, and of one pair, by a word in the card's name.
DOCUMENTS_MS = {"H100": 27, "A100": 65, "L4": 200}
PAIR_MS = {"L4": 6}
P99_MS = 130
TIMES_PEER = 2.0


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        number: From 1, in the order of `QUESTIONS`.
        verdict: One word or a few: yes, no, measured, not on a CPU, failed.
        figures: What was measured, by name.
        note: How to read it.
    """

    number: int
    verdict: str
    figures: dict[str, object] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A measured value beside the one it is held to; `met` is None where this card has no bar."""

    name: str
    limit: float | None
    measured: float
    met: bool | None


def bars(gpu, one_pair_s, documents_s, peer_s, p99_s):
    """The bars of speed, in milliseconds and as a ratio.

    Args:
        gpu: Name of the card, or None on a CPU.
        one_pair_s: Seconds of one pair.
        documents_s: Seconds of 100 documents of 180 tokens.
        peer_s: The same in sentence-transformers, its network alone; None if it was not measured.
        p99_s: The 99th percentile of latency under random arrivals, by rows of a call.
    """
    found = [
        _at_most("100 documents, ms", _of_card(DOCUMENTS_MS, gpu), documents_s * 1000),
        _at_most("one pair, ms", _of_card(PAIR_MS, gpu), one_pair_s * 1000),
    ]
    for rows, seconds in p99_s.items():
        found.append(_at_most(f"p99 of calls of {rows} at 80 % load, ms", P99_MS if gpu else None, seconds * 1000))
    if peer_s is not None:
        ratio, limit = peer_s / documents_s, TIMES_PEER if gpu else None
        met = None if limit is None else ratio >= limit
        found.append(Bar("times sentence-transformers, at least", limit, round(ratio, 2), met))
    return found


def _of_card(limits, gpu):
    words = (gpu or "").replace("-", " ").split()
    return next((limit for word, limit in limits.items() if word in words), None)


def _at_most(name, limit, measured):
    return Bar(name, limit, round(measured, 3), None if limit is None else measured <= limit)


def write_report(stem, facts, answers, bars):
    """Write `stem`.json and `stem`.md; questions without an answer yet are shown as not reached."""
    given = {answer.number: answer for answer in answers}
    every = [given.get(number, Answer(number, "not reached")) for number in range(1, len(QUESTIONS) + 1)]
    document = {
        "facts": facts,
        "answers": [{"question": QUESTIONS[answer.number - 1], **asdict(answer)} for answer in every],
        "bars": [asdict(bar) for bar in bars],
    }
    Path(f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    Path(f"{stem}.md").write_text(markdown(facts, every, bars), encoding="utf-8")


def markdown(facts, answers, bars):
    lines = ["# The packed graph on a GPU", "", *_table(("", ""), facts.items())]
    for answer in answers:
        lines += ["", f"## {answer.number}. {QUESTIONS[answer.number - 1]}", "", f"**{answer.verdict}**"]
        lines += ["", answer.note] if answer.note else []
        lines += ["", *_table(("figure", "value"), answer.figures.items())] if answer.figures else []
    if bars:
        met = {True: "yes", False: "**no**", None: "no bar for this card"}
        table = [(bar.name, "" if bar.limit is None else bar.limit, bar.measured, met[bar.met]) for bar in bars]
        lines += ["", "## Bars", "", *_table(("bar", "limit", "measured", "met"), table)]
    return "\n".join(lines) + "\n"


def _table(head, rows):
    def line(cells):
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]


def _cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(part) for part in value)
    return str(value).replace("|", "\\|")
