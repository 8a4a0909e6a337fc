"""What the replacements share: the client, the comparison of checkpoints, pairs in every form, ignored arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError, ModelNotFoundError, UnexpectedResponseError

if TYPE_CHECKING:
    from triton_rerank.types import ModelInfo

logger: logging.Logger = logging.getLogger("triton_rerank")

Pair = Sequence[str]

TIMEOUT_S = 600.0
"""Of one call: the originals have none, and a long list takes minutes on a CPU."""


class Served:
    """A client of its own, and a warning where the server has another checkpoint."""

    def __init__(self, checkpoint: str, url: str | Sequence[str] | None) -> None:
        self._client = RerankClient(url or None, timeout=TIMEOUT_S)
        self._checkpoint = checkpoint
        self._known: ModelInfo | None = None
        self._compared = False

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()

    def info(self) -> ModelInfo | None:
        """What the server says of its model; None if it can't tell.

        Raises:
            RerankError: The server does not answer. It is asked again at the next call.
        """
        if not self._compared:
            try:
                self._known = self._client.model_info()
            except (InvalidRequestError, ModelNotFoundError, UnexpectedResponseError) as error:
                self._compared = True
                logger.debug("the server's checkpoint is unknown: %s", error)
                return None
            self._compared = True
            served = self._known.checkpoint
            if served is not None and _last_name(served) != _last_name(self._checkpoint):
                logger.warning("asked for %s, but the server has %s: its scores differ", self._checkpoint, served)
        return self._known

    def score(
        self, pairs: Sequence[Pair], *, normalize: bool, max_length: int | None, query_max_length: int | None
    ) -> list[float]:
        """Relevance scores or logits, in the order of `pairs`."""
        self.info()
        texts = [(query, document) for query, document in pairs]
        return self._client.score(texts, normalize=normalize, max_length=max_length, query_max_length=query_max_length)


def _last_name(checkpoint: str) -> str:
    return os.fspath(checkpoint).rstrip("/").rpartition("/")[2]


def check_ignored(where: str, given: Iterable[str], ignored: frozenset[str]) -> None:
    """Raise TypeError for an argument that may change scores and that this module does not know."""
    if unknown := sorted(set(given) - ignored):
        raise TypeError(
            f"{where} got {', '.join(unknown)}, which may change scores and is not known to the server; leave it out"
        )
    if given:
        logger.debug("%s: %s decided by the server, ignored", where, ", ".join(sorted(given)))


def pairs_of(sentences: Any) -> tuple[list[Pair], bool]:
    """Pairs as a list, and whether a single pair was given instead of several."""
    if isinstance(sentences, (str, bytes)):
        raise InvalidRequestError("sentences is a text; pass (query, document) pairs, or one pair")
    given = sentences.tolist() if hasattr(sentences, "tolist") else list(sentences)
    single = len(given) == 2 and all(isinstance(text, str) for text in given)
    pairs = [given] if single else given
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise InvalidRequestError(f"sentences[{index}] is not a (query, document) pair of texts")
    return pairs, single
