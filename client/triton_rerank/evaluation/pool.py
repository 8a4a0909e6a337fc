"""The candidates that a reranker receives: their number, and the relevant documents among them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median

from triton_rerank.evaluation.collections import Collection
from triton_rerank.evaluation.trec import Run


@dataclass(frozen=True, slots=True)
class Pool:
    """Sizes and recall of the candidate lists."""

    num_documents: int
    """Documents in `Collection.documents`."""
    smallest: int
    median: float
    largest: int
    recall: float
    """Mean share of a query's relevant documents that are among its candidates: the limit for any reranker."""
    complete: bool = True
    """False if `num_documents` counts candidates only, not the whole corpus."""

    def sentence(self) -> str:
        """One line for a report."""
        sizes = f"{self.smallest} to {self.largest}" if self.smallest != self.largest else str(self.largest)
        source = f"out of {self.num_documents:,} documents" if self.complete else "from the given run"
        return (
            f"pool: {sizes} candidates per query (median {self.median:g}) {source}; "
            f"they hold {self.recall:.1%} of the relevant documents, which limits R@N for every order"
        )


def pool_of(collection: Collection, first_stage: Run) -> Pool:
    """Describe the candidates of a collection's queries.

    Args:
        collection: Queries, documents and judgements.
        first_stage: query_id -> candidates.
    """
    sizes = [len(first_stage.get(query_id, {})) for query_id in collection.queries]
    shares = []
    for query_id, judged in collection.qrels.items():
        relevant = {doc_id for doc_id, relevance in judged.items() if relevance > 0}
        if relevant:
            shares.append(len(relevant & first_stage.get(query_id, {}).keys()) / len(relevant))
    return Pool(
        num_documents=len(collection.documents),
        smallest=min(sizes),
        median=float(median(sizes)),
        largest=max(sizes),
        recall=fmean(shares) if shares else 0.0,
        complete=collection.complete,
    )
