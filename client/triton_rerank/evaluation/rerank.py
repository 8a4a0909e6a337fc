"""Score the first stage's candidates with the served model, several queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from hashlib import sha256

from triton_rerank.client import RerankClient
from triton_rerank.errors import UnexpectedResponseError
from triton_rerank.evaluation.collections import Collection
from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.trec import Run, ranked
from triton_rerank.types import Cascade, Stage


class Inputs:
    """The texts of each query's call, and their digests.

    Args:
        collection: Texts of queries and documents.
        first_stage: query_id -> candidates.
    """

    def __init__(self, collection: Collection, first_stage: Run) -> None:
        self._collection = collection
        self._first_stage = first_stage
        self._digests: dict[str, bytes] = {}

    def candidates(self, query_id: str) -> list[str]:
        """Ids of the candidates, best first."""
        return ranked(self._first_stage.get(query_id, {}))

    def texts(self, query_id: str) -> tuple[str, list[str]]:
        """The query and its candidates."""
        documents = self._collection.documents
        return self._collection.queries[query_id], [documents[doc_id] for doc_id in self.candidates(query_id)]

    def digest(self, query_id: str) -> str:
        """A digest of the query, and of the ids and texts of its candidates in any order."""
        whole = sha256(_sha256(self._collection.queries[query_id]))
        for doc_id in sorted(self.candidates(query_id)):
            if doc_id not in self._digests:
                self._digests[doc_id] = _sha256(self._collection.documents[doc_id])
            whole.update(_sha256(doc_id) + self._digests[doc_id])
        return whole.hexdigest()[:32]

    def unchanged(self, kept: Mapping[str, Reranked]) -> dict[str, Reranked]:
        """Those of the collection's queries in `kept` that were scored with the same texts."""
        return {
            query_id: kept[query_id]
            for query_id in self._collection.queries
            if query_id in kept and kept[query_id].input_digest == self.digest(query_id)
        }


def rerank_queries(
    client: RerankClient,
    collection: Collection,
    first_stage: Run,
    *,
    done: Mapping[str, Reranked],
    keep: Callable[[Reranked], object],
    concurrency: int,
    max_length: int | None = None,
    cascade: Cascade | None = None,
) -> dict[str, Reranked]:
    """Score every query's candidates.

    Args:
        client: Connected to the model. A KeyboardInterrupt closes it, which cancels the calls in flight.
        collection: Texts of queries and documents.
        first_stage: query_id -> candidates.
        done: Queries that need no call.
        keep: Called in this thread with each query when it completes, in any order.
        concurrency: Queries in flight at once.
        max_length: Tokens of a pair; the server's default if None.
        cascade: Rank in two stages.

    Returns:
        query_id -> scores, in the order of the collection's queries.

    Raises:
        RerankError: A call failed, or the model was replaced meanwhile. `keep` has received the queries that completed
            before; the others are cancelled.
    """
    inputs = Inputs(collection, first_stage)

    def one(query_id: str) -> tuple[Reranked, tuple[Stage, ...]]:
        doc_ids = inputs.candidates(query_id)
        query, texts = inputs.texts(query_id)
        response = client.rerank(query, texts, max_length=max_length, cascade=cascade)
        usage, stages = response.usage, response.stages
        reranked = Reranked(
            query_id,
            {doc_ids[r.index]: r.logit if cascade is None else -float(r.rank) for r in response},
            response.timing.total_s,
            usage.num_tokens,
            usage.num_truncated,
            inputs.digest(query_id),
            num_pairs=stages[-1].usage.num_pairs if stages else 0,
            first_s=stages[0].timing.total_s if len(stages) > 1 else 0.0,
        )
        return reranked, stages

    results, versions = dict(done), dict[str, str]()
    waiting = [query_id for query_id in collection.queries if query_id not in done]

    def take(future: Future[tuple[Reranked, tuple[Stage, ...]]]) -> None:
        reranked, stages = future.result()
        check_versions(stages, versions)
        keep(reranked)
        results[reranked.query_id] = reranked

    with ExitStack() as stack:
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="eval")
        stack.callback(pool.shutdown, cancel_futures=True)
        calls = dict.fromkeys(pool.submit(one, query_id) for query_id in waiting)
        try:
            for future in as_completed([*calls]):
                take(future)
                del calls[future]  # after: an interruption meanwhile keeps it, too
        except KeyboardInterrupt:
            completed = [future for future in calls if future.done() and future.exception() is None]
            client.close()  # otherwise the pool waits for the calls in flight
            for future in completed:
                take(future)
            raise
    return {query_id: results[query_id] for query_id in collection.queries}


def check_versions(stages: Iterable[Stage], versions: dict[str, str]) -> None:
    """Hold the version of each model to that of the queries before."""
    for stage in stages:
        before = versions.setdefault(stage.model, stage.model_version)
        if before != stage.model_version:
            raise UnexpectedResponseError(
                f"{stage.model}: version {before} scored the queries before, version {stage.model_version} this one: "
                "the model was replaced. Start again, into another --out or OUTPUT, when all have the same"
            )


def as_run(results: Iterable[Reranked]) -> Run:
    """query_id -> doc_id -> logit."""
    return {reranked.query_id: reranked.scores for reranked in results}


def _sha256(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
