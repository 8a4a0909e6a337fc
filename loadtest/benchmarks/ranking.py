"""Effect of an artefact's precision on ranking: nDCG@10 and Kendall's tau against a reference.

    PYTHONPATH=loadtest python -m benchmarks.ranking REFERENCE_REPOSITORY OTHER_REPOSITORY --beir SET [SET ...]

Both rank BM25's candidates in process in OpenVINO, as `triton-rerank eval` does through a server.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.in_process import InProcessReranker
from triton_rerank.evaluation.bm25 import Bm25
from triton_rerank.evaluation.collections import Collection, beir_files, load_files
from triton_rerank.evaluation.measures import measure
from triton_rerank_build.parity.compare import kendall_tau

MEASURE = "nDCG@10"


@dataclass(frozen=True)
class Found:
    """Results of one set.

    Attributes:
        reference, other: Mean nDCG@10.
        tau: Mean over queries of Kendall's tau between both orders of the candidates.
        worst_difference: Largest difference between two logits of a pair.
    """

    reference: float
    other: float
    tau: float
    worst_difference: float

    @property
    def points(self) -> float:
        """Gain of the other in points of nDCG."""
        return 100 * (self.other - self.reference)

    def __str__(self) -> str:
        return (
            f"{MEASURE} {self.reference:.4f} -> {self.other:.4f} ({self.points:+.2f} points), Kendall's tau "
            f"{self.tau:.4f}, logits differ by {self.worst_difference:.2f} at most"
        )


def main() -> None:
    """Rank with both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path, help="model repository of the reference")
    parser.add_argument("other", type=Path, help="model repository to compare")
    parser.add_argument("--beir", type=Path, nargs="+", required=True, metavar="SET", help="folders in BEIR layout")
    parser.add_argument("--precision", default="f32", help="OpenVINO's precision for the other (default: %(default)s)")
    parser.add_argument("--max-queries", type=int, default=150, help="queries per set (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=20, help="candidates per query (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=256, help="tokens per pair (default: %(default)s)")
    options = parser.parse_args()
    rerankers = InProcessReranker(options.reference, "f32"), InProcessReranker(options.other, options.precision)
    for reranker in rerankers:
        reranker.max_length = min(options.max_length, reranker.max_length)
    results = []
    for folder in options.beir:
        collection = load_files(beir_files(folder), options.max_queries)
        found = compare(rerankers, collection, options.depth, folder.name)
        results.append(found)
        print(f"{folder.name}, {len(collection.queries)} queries: {found}", flush=True)
    print(
        f"RESULT least_points={min(found.points for found in results):.2f} "
        f"least_tau={min(found.tau for found in results):.4f}"
    )


def compare(rerankers: tuple[InProcessReranker, ...], collection: Collection, depth: int, title: str) -> Found:
    """Rank the candidates of each query with both."""
    index = Bm25(collection.documents)
    runs: tuple[dict[str, dict[str, float]], ...] = ({}, {})
    taus, differences = [], []
    for query_id, query in tqdm(collection.queries.items(), desc=title, disable=None, leave=False):
        doc_ids = list(index.search(query, depth))
        if not doc_ids:
            continue
        texts = [collection.documents[doc_id] for doc_id in doc_ids]
        want, got = (reranker.score(query, texts) for reranker in rerankers)
        for run, logits in zip(runs, (want, got), strict=True):
            run[query_id] = dict(zip(doc_ids, logits.tolist(), strict=True))
        taus.append(kendall_tau(want, got))
        differences.append(float(np.abs(want - got).max()))
    reference, other = (measure([MEASURE], collection.qrels, run).mean[MEASURE] for run in runs)
    return Found(reference, other, float(np.mean(taus)), max(differences))


if __name__ == "__main__":
    main()
