"""`triton-rerank warm`: have documents encoded ahead, so that late interaction ranks them from its cache."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triton_rerank.cli.connection import connected
from triton_rerank.cli.inputs import Item, read_documents
from triton_rerank.cli.output import progress
from triton_rerank.cli.scoring import add_text_arguments, check_texts, chosen_texts, in_shell_terms
from triton_rerank.cli.values import positive
from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.collections import read_corpus
from triton_rerank.transport.connection import check_urls

DESCRIPTION = (
    "Have documents encoded ahead, so that late interaction ranks them from its cache. Several servers are filled one "
    "after the other. After an interruption run it again: documents that are cached are not encoded again."
)

_BATCH = 256  # documents of a call: two requests
_QUERY = "warm"  # what the documents are ranked for; its result is not used


@dataclass(frozen=True, slots=True)
class _Warmed:
    """What was done on one server.

    Attributes:
        url: The server.
        documents: Documents that were sent.
        complete: Whether these are all of them; if not, the cache is full.
        encoded: Texts that the server encoded meanwhile, for any caller.
        seconds: Duration.
        cache: The server's description of its cache at the end.
    """

    url: str
    documents: int
    complete: bool
    encoded: int
    seconds: float
    cache: Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `warm`."""
    parser.set_defaults(model="late_interaction")
    parser.add_argument("files", nargs="*", metavar="FILE", help="documents, as `rerank` reads them; - is stdin")
    parser.add_argument(
        "--corpus", action="append", type=Path, metavar="FILE", help="documents, as `eval` reads them; repeatable"
    )
    add_text_arguments(parser)
    parser.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="that of the calls to come (the server's default)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per server")


def run(options: argparse.Namespace) -> int:
    """Run `warm`: 0, or 1 if a cache is too small for the documents."""
    items = _read(options)
    if not items:
        raise InvalidRequestError("no documents: give a FILE, - for stdin, or --corpus FILE")
    status = 0
    for url in check_urls(options.url):
        options.url = [url]
        warmed = _warm(options, url, items)
        print(json.dumps(asdict(warmed)) if options.json else _told(warmed, len(items)), flush=True)
        status |= not warmed.complete
    return status


def _read(options: argparse.Namespace) -> list[Item]:
    text_from, option = chosen_texts(options)
    if options.corpus and text_from is not None:
        raise InvalidRequestError(f"{option} is for FILE; the text of --corpus is title and text")
    items = [item for name in options.files for item in read_documents(name)]
    check_texts(items, text_from, option)
    corpus = read_corpus(options.corpus or ())
    return items + [Item(text, f"document {doc_id}", None) for doc_id, text in corpus.items()]


def _warm(options: argparse.Namespace, url: str, items: Sequence[Item]) -> _Warmed:
    """Rank the documents batch by batch, until all are sent or the cache is full."""
    text_from, option = chosen_texts(options)
    start, sent, distinct = time.monotonic(), 0, set[int]()
    with connected(options) as client, progress(f"encoding on {url}", len(items), "documents") as advance:
        before = cache = _cache(options)
        try:
            while sent < len(items) and not _is_full(cache, before, len(distinct)):
                batch = items[sent : sent + _BATCH]
                with in_shell_terms(batch, option):
                    response = client.rerank(
                        _QUERY, [item.value for item in batch], max_length=options.max_length, text_from=text_from
                    )
                distinct |= {hash(result.text) for result in response}
                sent += len(batch)
                for _ in batch:
                    advance()
                cache = _cache(options)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted after {sent:,} of {len(items):,} documents; run the command again to go on: what is "
                "cached is not encoded again"
            ) from None
    full = _is_full(cache, before, len(distinct))
    seconds = time.monotonic() - start
    return _Warmed(url, sent, not full, cache["encoded"] - before["encoded"], round(seconds, 3), cache)


def _cache(options: argparse.Namespace) -> dict[str, int]:
    """The server's description of its cache now: a client that has one asks again after two seconds only.

    Raises:
        InvalidRequestError: It has none.
    """
    with connected(options) as client:
        cache = client.model_info().manifest.get("cache")
    if not isinstance(cache, dict):
        raise InvalidRequestError(
            f"{client.model} caches no vectors, or its server is of an earlier release: there is nothing to warm; "
            "use --model with an ensemble for late interaction"
        )
    if not cache["limit_bytes"]:
        raise InvalidRequestError(f"the cache of {client.model} is off: cache_bytes is 0 in late_scorer/config.pbtxt")
    return cache


def _is_full(cache: Mapping[str, int], before: Mapping[str, int], distinct: int) -> bool:
    """Whether documents of this run had to make room for others of this run."""
    return cache["evicted"] > before["evicted"] and distinct > cache["texts"]


def _told(warmed: _Warmed, total: int) -> str:
    cache = warmed.cache
    held = (
        f"the cache holds {cache['texts']:,} texts in {cache['bytes'] / 1e6:,.1f} MB, "
        f"{100 * cache['bytes'] / cache['limit_bytes']:.1f} % of its {cache['limit_bytes'] / 1e6:,.1f} MB"
    )
    if warmed.complete:
        return (
            f"{warmed.url}: {warmed.documents:,} documents are cached after {warmed.seconds:.1f} s, "
            f"{warmed.encoded:,} texts were encoded; {held}"
        )
    return (
        f"{warmed.url}: the cache is full after {warmed.documents:,} of {total:,} documents, and the first are dropped "
        f"for the last; {held}; raise cache_bytes in late_scorer/config.pbtxt, or warm fewer documents"
    )
