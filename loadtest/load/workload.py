"""Searches of the load test, over documents of many languages and lengths; the same seed gives the same searches."""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from load.sentences import SENTENCES

MEDIAN_TOKENS = 130
SPREAD = 0.75  # of the logarithm: one document in twenty is 3.4 times as long as the median
SHORTEST_TOKENS, LONGEST_TOKENS = 12, 512


@dataclass(frozen=True)
class Search:
    """One call: a query and the documents to rank."""

    query: str
    documents: tuple[str, ...]


def passage_tokens(chance: random.Random) -> float:
    """A length like those of web passages, log-normal: most are short, a few reach the limit of 512 tokens."""
    return min(LONGEST_TOKENS, max(SHORTEST_TOKENS, MEDIAN_TOKENS * math.exp(chance.gauss(0, SPREAD))))


def uniform_tokens(chance: random.Random) -> float:
    """A length between the shortest and the limit of 512 tokens, each as likely as the others."""
    return chance.uniform(SHORTEST_TOKENS, LONGEST_TOKENS)


def generated(
    num_documents: int, seed: int | str, tokens: Callable[[random.Random], float] = passage_tokens
) -> Iterator[Search]:
    """Endless searches. Nine documents of ten are in the language of the query.

    Every document is different, so that caches have no effect.

    Args:
        num_documents: In each search.
        seed: The same seed gives the same searches.
        tokens: Draws the length of a document, in tokens of XLM-RoBERTa, roughly.
    """
    chance = random.Random(f"{seed}/{num_documents}")
    while True:
        home = chance.randrange(len(SENTENCES))
        documents = []
        for _ in range(num_documents):
            language = home if chance.random() < 0.9 else chance.randrange(len(SENTENCES))
            documents.append(_document(language, tokens(chance), chance))
        lines = SENTENCES[home][2]
        yield Search(f"{lines[0]} {chance.randrange(1000)}", tuple(documents))


def _document(language: int, tokens: float, chance: random.Random) -> str:
    _, tokens_per_character, lines = SENTENCES[language]
    text = f"{chance.randrange(10_000)}."
    while len(text) * tokens_per_character < tokens:
        text += f" {chance.choice(lines[1:])}"
    return text[: int(tokens / tokens_per_character)]


def from_file(path: Path) -> Iterator[Search]:
    """Endless repetition of a JSONL file's searches: {"query": "...", "documents": ["...", ...]} on each line.

    Raises:
        ValueError: A line is malformed, or the file has no searches.
    """
    searches = [_search(line, f"{path}:{number}") for number, line in enumerate(_lines(path), start=1)]
    if not searches:
        raise ValueError(f"{path} contains no searches")
    while True:
        yield from searches


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _search(line: str, position: str) -> Search:
    try:
        record = json.loads(line)
        query, documents = record["query"], record["documents"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{position} is not {{"query": "...", "documents": ["...", ...]}}: {error!r}') from None
    if not isinstance(query, str) or not isinstance(documents, list) or not all(isinstance(d, str) for d in documents):
        raise ValueError(f"{position}: query must be text, documents a list of texts")
    return Search(query, tuple(documents))
