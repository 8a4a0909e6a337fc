"""Time and loss of a cascade: `PYTHONPATH=loadtest python -m benchmarks.cascade [MODELS_JSON ...]`.

One server holds the demo reranker and demo-late. Each round ranks new documents, with the lengths of web passages (see
workload.py), four times: by the cross-encoder, by a cascade that finds them new, by one that knows them, and by late
interaction alone, which knows them too. Passes of one round are compared. On a shared machine a ratio of times is as
noisy as the other work; that of the server's processor time is not. The first run exports both checkpoints, which takes
minutes.

The quality is that of `triton-rerank eval --cascade 20 100 --out DIR`, whose DIR/models.json files are the arguments:
nDCG@10 that the cascade of 20 loses against the cross-encoder alone where a query has up to 100 candidates, and that of
100 where it has more.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.late_interaction import repository
from load.workload import Search, generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

KEEP = {100: 20, 1000: 100}
"""Documents in a call -> those that the cross-encoder scores."""


class Pass(NamedTuple):
    """What one call took."""

    wall_s: float
    cpu_s: float
    """Of all processes of the server."""
    num_tokens: int
    """That the call's last stage read."""


@dataclass(frozen=True)
class Round:
    """The passes over the same documents."""

    reranker: Pass
    new: Pass
    known: Pass
    late: Pass


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
            processes = processes_of(server)
            found = {
                size: [measure(reranker, late, search, processes) for search in searches(size, options.rounds)]
                for size in KEEP
            }
    for size, rounds in found.items():
        report(size, rounds)
    for folder, points in losses.items():
        print(f"{folder}: the cascade loses {points:+.2f} points of nDCG@10")
    print(result(found, losses))


def searches(size: int, rounds: int) -> list[Search]:
    """Searches for the rounds of this size; the same in every run."""
    return list(islice(generated(size, seed="cascade"), rounds if size == 1000 else 2 * rounds))


def processes_of(server: EmbeddedServer) -> list[psutil.Process]:
    """The processes of a server: Triton's, and those of its models."""
    port = server.grpc_url.rsplit(":", 1)[1]
    started = psutil.Process().children(recursive=True)
    triton = next(process for process in started if f"--grpc-port={port}" in process.cmdline()[1:])
    return [triton, *triton.children(recursive=True)]


def measure(reranker: RerankClient, late: RerankClient, search: Search, processes: Sequence[psutil.Process]) -> Round:
    """One round; the passes over known documents have a query that the first one had not, as a caller's would be."""

    def cpu_s() -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in processes))

    def timed(client: RerankClient, query: str, keep: int | None = None) -> Pass:
        start, before = time.perf_counter(), cpu_s()
        response = client.rerank(query, search.documents, cascade=keep)
        taken = Pass(time.perf_counter() - start, cpu_s() - before, response.stages[-1].usage.num_tokens)
        print(f"{len(search.documents)} documents, {client.model}, keep {keep}: {taken}", file=sys.stderr)
        return taken

    keep, query = KEEP[len(search.documents)], f"{search.query} 2"
    return Round(
        new=timed(reranker, search.query, keep),
        known=timed(reranker, query, keep),
        late=timed(late, search.query),
        reranker=timed(reranker, query),
    )


def loss(summary: Mapping[str, dict]) -> float:
    """Points of nDCG@10 that the cascade loses against the cross-encoder alone."""
    keep = KEEP[100 if summary["pool"]["largest"] <= 100 else 1000]
    means = [summary["systems"][name]["mean"]["nDCG@10"] for name in ("reranker", f"cascade-{keep}")]
    return 100 * (means[0] - means[1])


def ratio(rounds: list[Round], part: str, index: int) -> float:
    """A pass by that of the cross-encoder: the median over the rounds."""
    return statistics.median(getattr(entry, part)[index] / entry.reranker[index] for entry in rounds)


def report(size: int, rounds: list[Round]) -> None:
    """Print the medians of one size."""
    print(f"{size} documents, keep {KEEP[size]}; of the cross-encoder's:")
    for part, title in (
        ("reranker", "cross-encoder"),
        ("new", "cascade over new documents"),
        ("known", "cascade over known documents"),
        ("late", "late interaction over known documents"),
    ):
        wall_s = statistics.median(getattr(entry, part).wall_s for entry in rounds)
        wall, cpu, tokens = (ratio(rounds, part, index) for index in range(3))
        print(f"  {title}: {wall_s * 1e3:,.0f} ms, time {wall:.3f}, processor time {cpu:.3f}, tokens {tokens:.3f}")


def result(found: dict[int, list[Round]], losses: dict[str, float]) -> str:
    """The line for scripts."""
    wall, cpu = ({size: ratio(rounds, "known", index) for size, rounds in found.items()} for index in range(2))
    return (
        f"RESULT time_ratio_1000={wall[1000]:.3f} ndcg_loss_max={max(losses.values(), default=math.nan):.2f} "
        f"time_ratio_100={wall[100]:.3f} cpu_ratio_1000={cpu[1000]:.3f} cpu_ratio_100={cpu[100]:.3f}"
    )


if __name__ == "__main__":
    main()
