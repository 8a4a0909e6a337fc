"""Look-alikes of FlagEmbedding's FlagReranker and sentence-transformers' CrossEncoder, served by Triton.

    from triton_rerank.compat import FlagReranker     # instead of: from FlagEmbedding import FlagReranker

    reranker = FlagReranker("BAAI/bge-reranker-v2-m3", use_fp16=True)
    scores = reranker.compute_score([["what is panda?", "hi"], ["what is panda?", "The giant panda is a bear."]])

The server holds the model, so its name is only compared with what the server says (a difference is logged as a
warning), and where it runs (`devices`, `use_fp16`, `batch_size`, `cache_dir`) is the server's configuration: these
arguments are accepted and change nothing. The server's address is the argument `url`, else $TRITON_RERANK_URL, else
localhost:8001; several are separated by commas.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError, RerankError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CrossEncoder", "FlagReranker"]

logger: logging.Logger = logging.getLogger("triton_rerank")

Pair = Sequence[str]


class _Served:
    """A client of its own, and a word of warning where the server has another checkpoint."""

    def __init__(self, checkpoint: str, url: str | Sequence[str] | None, ignored: dict[str, object]) -> None:
        address = url or os.environ.get("TRITON_RERANK_URL", "localhost:8001").split(",")
        self._client = RerankClient(address, timeout=None)  # long lists take their time
        self._checkpoint = checkpoint
        self._compared = False
        given = sorted(name for name, value in ignored.items() if value not in (None, False))
        if given:
            logger.debug("%s: decided by the server, ignored here", ", ".join(given))

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()

    def _score(
        self, pairs: Sequence[Pair], normalize: bool, max_length: int | None, query_max_length: int | None
    ) -> list[float]:
        if not self._compared:
            self._compared = True
            self._compare()
        texts = [(pair[0], pair[1]) for pair in pairs]
        return self._client.score(texts, normalize=normalize, max_length=max_length, query_max_length=query_max_length)

    def _compare(self) -> None:
        try:
            served = self._client.model_info().checkpoint
        except RerankError as error:
            logger.debug("the server's checkpoint is unknown: %s", error)
            return
        if served is not None and _last_name(served) != _last_name(self._checkpoint):
            logger.warning("asked for %s, but the server has %s: its scores differ", self._checkpoint, served)


def _last_name(checkpoint: str) -> str:
    return os.fspath(checkpoint).rstrip("/").rpartition("/")[2]


class FlagReranker(_Served):
    """FlagEmbedding's FlagReranker (its arguments, defaults and scores) over a served model.

    Args:
        model_name_or_path: The checkpoint that the server should have.
        use_fp16: Ignored; the precision is chosen when the model is built.
        query_instruction_for_rerank: Put before each query with `query_instruction_format`.
        query_instruction_format: Of the instruction and the query.
        passage_instruction_for_rerank: Put before each passage with `passage_instruction_format`.
        passage_instruction_format: Of the instruction and the passage.
        trust_remote_code: Ignored; no code is loaded here.
        cache_dir: Ignored; nothing is downloaded here.
        devices: Ignored; the server's instance groups say where it runs.
        batch_size: Ignored; the server joins the requests of all callers.
        query_max_length: Tokens of the query; three quarters of `max_length` if None.
        max_length: Tokens of a pair.
        normalize: Whether scores are sigmoid(logit).
        url: The server; see the module.
        unused: Anything else FlagReranker takes; ignored.
    """

    def __init__(
        self,
        model_name_or_path: str,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: str | int | Sequence[str] | Sequence[int] | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = 512,
        normalize: bool = False,
        *,
        url: str | Sequence[str] | None = None,
        **unused: object,
    ) -> None:
        ignored = {"use_fp16": use_fp16, "devices": devices, "cache_dir": cache_dir, **unused}
        super().__init__(model_name_or_path, url, ignored)
        self._query_prefix = (query_instruction_format, query_instruction_for_rerank)
        self._passage_prefix = (passage_instruction_format, passage_instruction_for_rerank)
        self.query_max_length = query_max_length
        self.max_length = max_length
        self.normalize = normalize

    def compute_score(
        self,
        sentence_pairs: Sequence[Pair] | Pair,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        **unused: object,
    ) -> list[float]:
        """Scores of pairs, in their order.

        Args:
            sentence_pairs: [query, passage] pairs, or one of them.
            batch_size: Ignored.
            query_max_length: As in the constructor, for this call.
            max_length: As in the constructor, for this call.
            normalize: As in the constructor, for this call.
            unused: Anything else FlagReranker takes; ignored.

        Returns:
            A list, also for a single pair, as FlagEmbedding does since 1.3.
        """
        single = len(sentence_pairs) > 0 and isinstance(sentence_pairs[0], str)
        pairs: Sequence[Any] = [sentence_pairs] if single else sentence_pairs
        instructed = [(_instructed(*self._query_prefix, q), _instructed(*self._passage_prefix, p)) for q, p in pairs]
        return self._score(
            instructed,
            self.normalize if normalize is None else normalize,
            self.max_length if max_length is None else max_length,
            self.query_max_length if query_max_length is None else query_max_length,
        )


def _instructed(form: str, instruction: str | None, text: str) -> str:
    return text if instruction is None else form.format(instruction, text)


class CrossEncoder(_Served):
    """sentence-transformers' CrossEncoder with one label (its `predict` and `rank`) over a served model.

    Pairs beyond `max_length` lose the end of the document here; CrossEncoder cuts the longer of the two texts.

    Args:
        model_name_or_path: The checkpoint that the server should have.
        max_length: Tokens of a pair; the server's default if None.
        activation_fn: Function of the logits, an array; sigmoid if None. torch.nn.Sigmoid and Identity are known.
        url: The server; see the module.
        unused: Anything else CrossEncoder takes (device, trust_remote_code, ...); ignored.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        max_length: int | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        url: str | Sequence[str] | None = None,
        **unused: object,
    ) -> None:
        super().__init__(model_name_or_path, url, unused)
        self.max_length = max_length
        self.activation_fn = activation_fn

    def predict(
        self,
        sentences: Sequence[Pair] | Pair,
        *,
        activation_fn: Callable[[Any], Any] | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **unused: object,
    ) -> NDArray[np.float32] | np.float32 | list[float]:
        """Scores of pairs, in their order: sigmoid(logit) unless an `activation_fn` says otherwise.

        Args:
            sentences: (query, document) pairs, or one of them.
            activation_fn: As in the constructor, for this call.
            convert_to_numpy: Whether to return an array instead of a list.
            convert_to_tensor: Refused: torch is not at work here.
            unused: Anything else CrossEncoder takes (batch_size, show_progress_bar, ...); ignored.

        Returns:
            float32 [num_pairs]; a single float32 for a single pair.
        """
        import numpy as np

        if convert_to_tensor:
            raise InvalidRequestError("convert_to_tensor is not supported; wrap the array: torch.from_numpy(scores)")
        single = len(sentences) > 0 and isinstance(sentences[0], str)
        pairs: Sequence[Any] = [sentences] if single else sentences
        activation = activation_fn or self.activation_fn
        kind = "Sigmoid" if activation is None else type(activation).__name__
        scores = np.asarray(self._score(pairs, kind == "Sigmoid", self.max_length, None), dtype=np.float32)
        if activation is not None and kind not in ("Sigmoid", "Identity"):
            scores = np.asarray(activation(scores), dtype=np.float32)
        if single:
            return np.float32(scores[0])
        return scores if convert_to_numpy else [float(score) for score in scores]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        activation_fn: Callable[[Any], Any] | None = None,
        **unused: object,
    ) -> list[dict[str, Any]]:
        """Documents by descending score.

        Args:
            query: What was searched for.
            documents: Texts.
            top_k: Number of results; all of them if None.
            return_documents: Whether results hold the text.
            activation_fn: As in the constructor, for this call.
            unused: Anything else CrossEncoder takes; ignored.

        Returns:
            {"corpus_id": place in `documents`, "score": float32} with "text" if asked for.
        """
        scores: Any = self.predict([(query, document) for document in documents], activation_fn=activation_fn)
        results: list[dict[str, Any]] = []
        for place in sorted(range(len(documents)), key=scores.__getitem__, reverse=True)[:top_k]:
            result = {"corpus_id": place, "score": scores[place]}
            results.append({**result, "text": documents[place]} if return_documents else result)
        return results
