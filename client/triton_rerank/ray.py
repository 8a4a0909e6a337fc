"""A stage of Ray Data pipelines that reranks the candidates of each row.

import ray
from triton_rerank.ray import Reranker

rows = ray.data.read_parquet("queries.parquet")  # query: text, candidates: list of texts
ranked = rows.map_batches(
    Reranker,
    fn_constructor_kwargs={"url": ["gpu-1:8001", "gpu-2:8001"]},
    compute=ray.data.ActorPoolStrategy(size=4),
    batch_format="pyarrow",
    batch_size=256,
)

Needs no Ray itself: Spark's `mapInPandas` and other engines can use it, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from triton_rerank.bulk.ranker import PATIENCE_S, TIMEOUT_S, Ranker, RankerSettings
from triton_rerank.bulk.rows import Columns, Failure, read_batch, with_results
from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.validation import check_timeout
from triton_rerank.transport.connection import TLS, MetadataSource
from triton_rerank.types import CallOptions

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Reranker"]

BatchT = TypeVar("BatchT")


class Reranker:
    """Reranks the candidates of each row of a batch; pass the class to `Dataset.map_batches`.

    Each worker has one client, which opens with its first batch. A batch comes back with all of its rows in their
    order, all of its columns, and two more: the ids of the candidates, most relevant first, and their scores.

    The calls have the server's last priority, 3 as shipped, and so yield to interactive ones. A call that finds no
    server, or no room there (`ServerOverloadedError`), is repeated with backoff until `patience` seconds have passed
    without any answer: a job outlasts a server's restart. Meanwhile the worker takes no further batch.

    Args:
        url: As the further `model`, `tls`, `metadata`, `compression` and `pairs_per_request`: see `RerankClient`.
        query_column: Texts.
        candidates_column: Lists of texts, or of structs, whose text is their field "text" or what `text_from` says.
        ids_column: Lists of ints or texts, as long as the candidates. If None, the ids are the candidates' field
            `id_field`, or without such a field their indices.
        ranked_ids_column: Is added: lists of int64 or string, most relevant first.
        scores_column: Is added: lists in the order of the ids, relevance scores from 0 to 1; float32 in Arrow.
        raw: Whether scores are logits.
        on_error: What follows a row that cannot be ranked: "raise" raises, "keep" adds the column `error_column`, null
            for ranked rows, and leaves the row without ids and scores.
        concurrency: Calls in flight of each worker at most.
        patience: Seconds without an answer from any server after which calls fail.
        **options: Those of `RerankClient.rerank`; `timeout`, of each call, is 600 seconds by default. With `cascade`
            only the documents that `model` scored are returned.

    Raises:
        InvalidRequestError: An argument is unusable.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        model: str = "reranker",
        *,
        query_column: str = "query",
        candidates_column: str = "candidates",
        ids_column: str | None = None,
        id_field: str = "id",
        ranked_ids_column: str = "ranked_ids",
        scores_column: str = "scores",
        raw: bool = False,
        on_error: Literal["raise", "keep"] = "raise",
        error_column: str = "error",
        concurrency: int = 8,
        patience: float = PATIENCE_S,
        tls: TLS | bool = False,
        metadata: MetadataSource | None = None,
        compression: Literal["gzip", "deflate"] | None = None,
        pairs_per_request: int | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        if on_error not in ("raise", "keep"):
            raise InvalidRequestError(f'on_error is {on_error!r}; pass "raise" or "keep"')
        timeout = check_timeout(options.pop("timeout", TIMEOUT_S))
        client = {"url": url, "model": model, "tls": tls, "metadata": metadata, "compression": compression}
        columns = Columns(query_column, candidates_column, ids_column, id_field, ranked_ids_column, scores_column)
        self._settings = RankerSettings(
            {**client, "pairs_per_request": pairs_per_request, "timeout": timeout},
            dict(options),
            columns,
            raw,
            concurrency,
            patience,
        ).checked()
        self._error_column = error_column if on_error == "keep" else None
        self._ranker: Ranker | None = None

    def __call__(self, batch: BatchT) -> BatchT:
        """Rank a batch.

        Args:
            batch: A `pyarrow.Table`, a `pandas.DataFrame`, or a dict of numpy arrays with shape [num_rows]. It is not
                changed.

        Returns:
            A batch of the same kind with the columns added.

        Raises:
            InvalidRequestError: A column is missing, or the row of the batch that is named, from 0, is bad.
            ServerUnavailableError: No call was answered for `patience` seconds.
        """
        if self._ranker is None:
            self._ranker = Ranker(self._settings)
        columns = self._settings.columns

        def failed(index: int, failure: Failure) -> None:
            if self._error_column is None:
                raise InvalidRequestError(f"row {index} of the batch, {failure}")

        rows = self._ranker.rank(read_batch(batch, columns), failed)
        return with_results(batch, columns, rows, self._error_column)

    def close(self) -> None:
        """Close the connections; the next batch opens new ones."""
        ranker, self._ranker = self._ranker, None
        if ranker is not None:
            ranker.close()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles open connections of their own."""
        return {**self.__dict__, "_ranker": None}
