"""Time and loss of a cascade: `PYTHONPATH=loadtest python -m benchmarks.cascade [MODELS_JSON ...]`.

One server holds the demo reranker and demo-late. Each round ranks new documents, with the lengths of web passages (see
workload.py), four times: by the cross-encoder, by a cascade that finds them new, by one that knows them, and by late
interaction alone, which knows them too. Passes of one round are compared: their ratios are reproducible on a shared
machine, seconds are not. The first run exports both checkpoints, which takes minutes.

The quality is that of `triton-rerank eval --cascade 20 100 --out DIR`, whose DIR/models.json files are the arguments:
nDCG@10 that the cascade of 20 loses against the cross-encoder alone where a query has up to 100 candidates, and that of
100 where it has more.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path

from benchmarks.late_interaction import ANOTHER_QUERY, repository
from load.workload import Search, generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

KEEP = {100: 20, 1000: 100}
"""Documents in a call -> those that the cross-encoder scores."""


@dataclass(frozen=True)
class Round:
    """Seconds of the passes over the same documents."""

    reranker_s: float
    new_s: float
    known_s: float
    late_s: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODELS_JSON", help="of `triton-rerank eval --cascade`")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="of 1,000 documents; twice as many of 100")
    options = parser.parse_args()
    losses = {str(path.parent): loss(json.loads(path.read_text(encoding="utf-8"))) for path in options.models}
    with EmbeddedServer(repository()) as server:
        reranker = RerankClient(server.grpc_url, timeout=None)
        late = RerankClient(server.grpc_url, "late_interaction", timeout=None)
        with reranker, late:
            for search in islice(generated(100, seed="warm"), 2):  # OpenVINO compiles kernels once per shape
                late.rerank(search.query, search.documents)
                reranker.rerank(search.query, search.documents)
            found = {
                size: [measure(reranker, late, search) for search in searches(size, options.rounds)] for size in KEEP
            }
    for size, rounds in found.items():
        report(size, rounds)
    for folder, points in losses.items():
        print(f"{folder}: the cascade loses {points:+.2f} points of nDCG@10")
    print(result(found, losses))


def searches(size: int, rounds: int) -> list[Search]:
    """Searches for the rounds of this size; the same in every run."""
    return list(islice(generated(size, seed="cascade"), rounds if size == 1000 else 2 * rounds))


def measure(reranker: RerankClient, late: RerankClient, search: Search) -> Round:
    """One round; the query of the last two passes is new, as a caller's would be."""

    def timed(client: RerankClient, query: str, keep: int | None = None) -> float:
        start = time.perf_counter()
        client.rerank(query, search.documents, cascade=keep)
        return time.perf_counter() - start

    keep = KEEP[len(search.documents)]
    return Round(
        new_s=timed(reranker, search.query, keep),
        known_s=timed(reranker, ANOTHER_QUERY, keep),
        late_s=timed(late, search.query),
        reranker_s=timed(reranker, search.query),
    )


def loss(summary: Mapping[str, dict]) -> float:
    """Points of nDCG@10 that the cascade loses against the cross-encoder alone."""
    keep = KEEP[100 if summary["pool"]["largest"] <= 100 else 1000]
    means = [summary["systems"][name]["mean"]["nDCG@10"] for name in ("reranker", f"cascade-{keep}")]
    return 100 * (means[0] - means[1])


def ratio(rounds: list[Round]) -> float:
    """Time of the cascade over known documents by that of the cross-encoder."""
    return statistics.median(entry.known_s / entry.reranker_s for entry in rounds)


def report(size: int, rounds: list[Round]) -> None:
    """Print the medians of one size."""
    reranker_s, new_s, known_s, late_s = map(statistics.median, zip(*map(astuple, rounds), strict=True))
    new = statistics.median(entry.new_s / entry.reranker_s for entry in rounds)
    print(
        f"{size} documents, keep {KEEP[size]}, milliseconds of a call: cross-encoder {reranker_s * 1e3:.0f}; cascade "
        f"over new documents {new_s * 1e3:.0f} ({new:.2f} of it), over known ones {known_s * 1e3:.0f} "
        f"({ratio(rounds):.2f}); late interaction over known ones {late_s * 1e3:.0f}"
    )


def result(found: dict[int, list[Round]], losses: dict[str, float]) -> str:
    """The line for scripts."""
    return (
        f"RESULT time_ratio_1000={ratio(found[1000]):.3f} ndcg_loss_max={max(losses.values(), default=math.nan):.2f} "
        f"time_ratio_100={ratio(found[100]):.3f}"
    )


if __name__ == "__main__":
    main()
