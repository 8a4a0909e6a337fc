"""Benefit of cached document vectors: `PYTHONPATH=loadtest python -m benchmarks.late_interaction`.

One server holds the demo reranker and demo-late. Late interaction ranks the same documents, with the lengths of web
passages (see workload.py), three times: first without cached vectors, then with them, then with another query. The
cross-encoder ranks them once. Each round takes new documents and compares its own passes: their ratios are reproducible
on a shared machine, seconds are not. The first run exports both checkpoints, which takes minutes.
"""

import argparse
import statistics
import sys
import time
import urllib.request
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path

from load.programs import processes_of
from load.workload import Search, generated
from triton_rerank import RerankClient, RerankResponse
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.late_interaction.repository import LATE, complete_late
from triton_rerank_build.repository.layout import RERANKER, complete_from_template, template_repository
from triton_rerank_build.support.files import cache_folder

# Documents in a call -> rounds.
ROUNDS = {10: 8, 100: 4, 1000: 2}
ANOTHER_QUERY = "Which of these says the most?"


@dataclass(frozen=True)
class Round:
    """Seconds of the passes over the same documents, and the largest difference between the logits of the first two."""

    first_s: float
    second_s: float
    other_query_s: float
    reranker_s: float
    difference: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", choices=ROUNDS, default=[*ROUNDS], help="documents per call")
    options = parser.parse_args()
    with EmbeddedServer(repository()) as server:
        late, reranker = (RerankClient(server.grpc_url, model, timeout=None) for model in reversed(server.models))
        with late, reranker:
            for search in islice(generated(100, seed="warm"), 2):  # OpenVINO compiles kernels once per shape
                late.rerank(search.query, search.documents)
                reranker.rerank(search.query, search.documents)
            before = megabytes(server)
            found = {size: [measure(late, reranker, s) for s in searches(size)] for size in options.sizes}
            after = megabytes(server)
        kept = metric(server, "late_interaction_cache_bytes") / 1e6
    for size, rounds in found.items():
        report(size, rounds)
    print(f"{kept:.0f} MB of cached vectors; memory in MB before and after: {shown(before)}; {shown(after)}")
    print(result(options.sizes[-1], found[options.sizes[-1]], kept))


def repository() -> Path:
    """Repository with both checkpoints in the cache folder (delete it to export again) and the current configs."""
    folder = cache_folder() / "bench-both"
    print(f"preparing {folder} ...", file=sys.stderr)
    for committed in (*folder.rglob("*.py"), *folder.rglob("*.pbtxt")):
        committed.unlink()
    complete_from_template(folder, template_repository())
    complete_late(folder)
    for checkpoint, layout in (("demo", RERANKER), ("demo-late", LATE)):
        if not (folder / layout.manifests[-1]).is_file():
            export(checkpoint, repository=folder)
    return folder


def searches(size: int) -> list[Search]:
    """Searches for the rounds of this size; the same in every run."""
    return list(islice(generated(size, seed=2), ROUNDS[size]))


def measure(late: RerankClient, reranker: RerankClient, search: Search) -> Round:
    """One round."""
    first_s, first = timed(late, search.query, search)
    second_s, second = timed(late, search.query, search)
    other_query_s, _ = timed(late, ANOTHER_QUERY, search)
    reranker_s, _ = timed(reranker, search.query, search)
    logits = [{entry.index: entry.logit for entry in response} for response in (first, second)]
    return Round(
        first_s,
        second_s,
        other_query_s,
        reranker_s,
        max(abs(logits[0][index] - logits[1][index]) for index in logits[0]),
    )


def timed(client: RerankClient, query: str, search: Search) -> tuple[float, RerankResponse]:
    """Seconds of a call, and its response."""
    start = time.perf_counter()
    response = client.rerank(query, search.documents)
    return time.perf_counter() - start, response


def report(size: int, rounds: list[Round]) -> None:
    """Print the medians of one size."""
    first_s, second_s, other_s, reranker_s, _ = map(statistics.median, zip(*map(astuple, rounds), strict=True))
    print(
        f"{size} documents, pairs/s: reranker {size / reranker_s:.0f}; late interaction {size / first_s:.0f} the first "
        f"time, {size / second_s:.0f} the second, {size / other_s:.0f} with another query; milliseconds of a call "
        f"{reranker_s * 1e3:.0f}, {first_s * 1e3:.0f}, {second_s * 1e3:.0f}, {other_s * 1e3:.0f}"
    )


def result(size: int, rounds: list[Round], kept: float) -> str:
    """The line for scripts: ratios at the last size."""
    speedup = statistics.median(entry.first_s / entry.second_s for entry in rounds)
    other = statistics.median(entry.first_s / entry.other_query_s for entry in rounds)
    against = statistics.median(entry.reranker_s / entry.first_s for entry in rounds)
    worst = max(entry.difference for entry in rounds)
    return (
        f"RESULT documents={size} speedup={speedup:.2f} speedup_another_query={other:.2f} "
        f"first_pass_against_reranker={against:.2f} worst_difference={worst:.2g} cache_mb={kept:.1f}"
    )


def metric(server: EmbeddedServer, name: str) -> float:
    """Sum of a metric's values on the server's metrics port."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def megabytes(server: EmbeddedServer) -> dict[str, float]:
    """Memory of each model's process that is not shared with other processes (USS)."""
    processes = processes_of(server).items()
    return {name: process.memory_full_info().uss / 1e6 for name, process in processes if name != "tritonserver"}


def shown(sizes: dict[str, float]) -> str:
    """Format sizes by model."""
    return ", ".join(f"{name} {size:.0f}" for name, size in sorted(sizes.items()))


if __name__ == "__main__":
    main()
