"""BM25 first stage for texts in any script.

A word is a sequence of Unicode letters, digits and marks, after NFKC and case folding; Arabic vowel signs are removed.
Scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and Korean, which attaches endings
to words, are cut into overlapping character bigrams, as Lucene's CJK analyzer does. No stop words, no stemming.
k1 = 0.9 and b = 0.4, as in BEIR's published figures.
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from triton_rerank.evaluation.files import require
from triton_rerank.evaluation.trec import Scores

K1, B = 0.9, 0.4

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Burmese
    "\u1100-\u11ff\uac00-\ud7ff"  # Hangul
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_ARABIC_SIGNS = re.compile("[\u0610-\u061a\u0640\u064b-\u065f\u0670]")


@lru_cache(maxsize=1)
def _words() -> re.Pattern[str]:
    # Python's \w excludes combining marks, which would split the words of Indic scripts and Thai.
    marks = "".join(
        character for character in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(character)[0] == "M"
    )
    return re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}](?:[^\\W_{_UNSPACED}]|[{re.escape(marks)}])*")


def tokenize(text: str) -> list[str]:
    """The words of a text; character bigrams in scripts without blanks."""
    text = _ARABIC_SIGNS.sub("", unicodedata.normalize("NFKC", text).casefold())
    return list(_tokens(text))


def _tokens(text: str) -> Iterator[str]:
    unspaced = _is_unspaced()
    for match in _words().finditer(text):
        word = match.group()
        if len(word) > 2 and unspaced.match(word):
            yield from (word[start : start + 2] for start in range(len(word) - 1))
        else:
            yield word


@lru_cache(maxsize=1)
def _is_unspaced() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}]")


class Bm25:
    """A BM25 index.

    Args:
        documents: doc_id -> text.
        progress: Called after each document.

    Raises:
        RerankError: The extra `eval` is not installed.
    """

    def __init__(self, documents: Mapping[str, str], progress: Callable[[], object] | None = None) -> None:
        bm25s = require("bm25s")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s logs every step at DEBUG
        self._doc_ids = list(documents)
        self._indices = {doc_id: index for index, doc_id in enumerate(self._doc_ids)}
        self._vocabulary: dict[str, int] = {}
        rows = []
        for text in documents.values():
            # A list of Python ints takes three times the memory of an array.
            vocabulary = self._vocabulary
            rows.append(array("i", (vocabulary.setdefault(word, len(vocabulary)) for word in tokenize(text))))
            if progress is not None:
                progress()
        self._index = bm25s.BM25(k1=K1, b=B)
        if self._vocabulary:
            tokenized = bm25s.tokenization.Tokenized(rows, self._vocabulary)
            self._index.index(tokenized, create_empty_token=False, show_progress=False)

    def search(self, query: str, depth: int) -> Scores:
        """The best `depth` of the documents that share a word with the query."""
        scores = self._scores(query)
        if scores is None:
            return {}
        found = (scores > 0).nonzero()[0]
        if len(found) > depth:  # sort only what can be returned
            values = scores[found]
            values.partition(len(values) - depth)
            found = (scores >= values[-depth]).nonzero()[0]
        # Equal scores are ordered by id, as in `trec.ranked`.
        best = sorted(found.tolist(), key=lambda index: (scores[index], self._doc_ids[index]), reverse=True)
        return {self._doc_ids[index]: float(scores[index]) for index in best[:depth]}

    def score(self, query: str, doc_ids: Iterable[str]) -> Scores:
        """The scores of the given documents; 0 for a document that shares no word with the query."""
        scores = self._scores(query)
        if scores is None:
            return dict.fromkeys(doc_ids, 0.0)
        return {doc_id: float(scores[self._indices[doc_id]]) for doc_id in doc_ids}

    def _scores(self, query: str) -> Any:  # noqa: ANN401  # bm25s ships no types; [num_documents] float32
        words = [word for word in tokenize(query) if word in self._vocabulary]
        return self._index.get_scores(words) if words else None
