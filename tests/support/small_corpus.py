"""A first stage's world in ten texts: for each query the texts that answer it, and one that only shares its words."""

import re
from dataclasses import dataclass
from zlib import crc32

TEXTS = {
    "air": "Sunlight is scattered by the molecules of the air, and blue light most of all: the sky looks blue.",
    "ticket": "Is the Blue Sky ticket still valid?",
    "masks": "Wearing masks and washing hands frequently can help prevent influenza.",
    "rust": "How to prevent rust: the frame should be oiled.",
    "museum": "The museum is open from nine to five, except on Mondays.",
    "tokyo": "Tokyo, on the island of Honshu, is the capital of Japan and the seat of its government.",
    "capital": "The capital of a company is the money that its owners have paid in.",
    "bank": "The central bank raised interest rates by a quarter of a point.",
    "手": "勤洗手、戴口罩、接种疫苗是预防流感的有效方法。",
    "soup": "Boil the noodles for two minutes and add them to the soup.",
}


@dataclass(frozen=True)
class Search:
    query: str
    best: str
    trap: str
    relevant: frozenset[str]  # in any language


SEARCHES = (
    Search("Why is the sky blue?", best="air", trap="ticket", relevant=frozenset({"air"})),
    Search("how to prevent the flu", best="masks", trap="rust", relevant=frozenset({"masks", "手"})),
)


def words(text: str) -> list[str]:
    """Lower-case words of `text`."""
    return re.findall(r"\w+", text.lower())


def embed(text: str, size: int = 512) -> list[float]:
    """A unit vector with one component per word: texts with many common words are similar."""
    vector = [0.0] * size
    for word in words(text):
        vector[crc32(word.encode()) % size] = 1.0
    length = sum(vector) ** 0.5
    return [component / length for component in vector]
