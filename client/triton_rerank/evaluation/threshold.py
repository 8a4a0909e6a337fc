"""A proposal for `min_relevance_score`: the score that best separates relevant from other candidates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triton_rerank.evaluation.journal import Reranked
from triton_rerank.evaluation.trec import Qrels
from triton_rerank.ranking.relevance import Relevance


@dataclass(frozen=True, slots=True)
class Threshold:
    """A relevance score, and what a filter at this score keeps."""

    min_relevance_score: float
    f1: float
    """Harmonic mean of precision and recall over all candidates of all queries."""
    relevant_kept: float
    """Share of the relevant candidates with at least this score."""
    others_kept: float
    """Share of the other candidates, unjudged ones included."""

    def sentence(self) -> str:
        """One line for a report."""
        return (
            f"min_relevance_score {self.min_relevance_score:.3f} separates best (F1 {self.f1:.3f}): it keeps "
            f"{self.relevant_kept:.1%} of the relevant candidates and {self.others_kept:.1%} of the others"
        )


def best_threshold(qrels: Qrels, results: Iterable[Reranked], logit_scale: float | None = None) -> Threshold | None:
    """The threshold with the highest F1 over all candidates; the highest one of equal F1.

    Candidates without a judgement count as not relevant, as in trec_eval.

    Args:
        qrels: Judgements.
        results: Scores of the candidates.
        logit_scale: `ModelInfo.logit_scale`.

    Returns:
        A score halfway, in logits, between the last kept and the first dropped candidate. None if the candidates are
        all relevant or all not.
    """
    candidates = sorted(
        (
            (logit, qrels.get(reranked.query_id, {}).get(doc_id, 0) > 0)
            for reranked in results
            for doc_id, logit in reranked.scores.items()
        ),
        reverse=True,
    )
    num_relevant = sum(relevant for _, relevant in candidates)
    num_others = len(candidates) - num_relevant
    if not num_relevant or not num_others:
        return None
    best_f1, best_count, best_hits, hits = 0.0, 0, 0, 0
    for count, (logit, relevant) in enumerate(candidates, start=1):
        hits += relevant
        if count < len(candidates) and candidates[count][0] == logit:
            continue  # no threshold lies between equal logits
        f1 = 2 * hits / (count + num_relevant)
        if f1 > best_f1:
            best_f1, best_count, best_hits = f1, count, hits
    last = candidates[best_count - 1][0]
    first_dropped = candidates[best_count][0] if best_count < len(candidates) else last
    return Threshold(
        min_relevance_score=Relevance(logit_scale)((last + first_dropped) / 2),
        f1=best_f1,
        relevant_kept=best_hits / num_relevant,
        others_kept=(best_count - best_hits) / num_others,
    )
