"""Send the first stage's candidates through the served model, several queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack

from triton_rerank.client import RerankClient
from triton_rerank.evaluation.collections import Collection
from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.trec import Run, ranked


def rerank_queries(
    client: RerankClient,
    collection: Collection,
    first_stage: Run,
    *,
    done: Mapping[str, Reranked],
    keep: Callable[[Reranked], object],
    concurrency: int,
    max_length: int | None = None,
) -> dict[str, Reranked]:
    """Score every query's candidates.

    Args:
        client: Connected to the model.
        collection: Gives the texts.
        first_stage: query_id -> candidates.
        done: Queries scored before, which are not asked again.
        keep: Called with each query as it is scored, in any order, from this thread.
        concurrency: Queries under way at once.
        max_length: Tokens of a pair; the server's default if None.

    Returns:
        query_id -> scores, in the order of the collection's queries.

    Raises:
        RerankError: A call failed; the queries before it were kept, the rest is given up.
    """

    def one(query_id: str) -> Reranked:
        doc_ids = ranked(first_stage.get(query_id, {}))
        texts = [collection.documents[doc_id] for doc_id in doc_ids]
        response = client.rerank(collection.queries[query_id], texts, max_length=max_length)
        scores = {doc_ids[result.index]: result.logit for result in response}
        usage = response.usage
        return Reranked(query_id, scores, response.timing.total_s, usage.num_tokens, usage.num_truncated)

    results = dict(done)
    waiting = [query_id for query_id in collection.queries if query_id not in done]
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="eval")
        stack.callback(pool.shutdown, cancel_futures=True)
        for future in as_completed([pool.submit(one, query_id) for query_id in waiting]):
            reranked = future.result()
            keep(reranked)
            results[reranked.query_id] = reranked
    return {query_id: results[query_id] for query_id in collection.queries}


def as_run(results: Iterable[Reranked]) -> Run:
    """query_id -> logits."""
    return {reranked.query_id: reranked.scores for reranked in results}
