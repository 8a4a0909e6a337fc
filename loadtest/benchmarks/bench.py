"""Throughput through Triton and the client, against the same artefact in process.

Run: `make bench`, or `PYTHONPATH=loadtest python -m benchmarks.bench`.
Both alternate in one run: their ratio is reproducible on a shared machine, their seconds are not. A call has 100
documents with the lengths of web passages (see workload.py), up to 512 tokens. The first run of a shape with random
weights creates and exports it, which takes minutes; later runs reuse it.
"""

import argparse
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.in_process import BUDGETS, InProcessReranker
from benchmarks.shapes import SHAPES, random_checkpoint
from load.triton_statistics import totals
from load.workload import Search, generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.checkpoints.demo import demo_checkpoint
from triton_rerank_build.repository.layout import template_repository
from triton_rerank_build.support.files import cache_folder

NUM_DOCUMENTS = 100
CALLERS, CALLER_DOCUMENTS = 16, 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["demo", *SHAPES], help="a single shape (default: demo and base)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement (default: %(default)s)")
    parser.add_argument(
        "--pairs-per-request", type=int, default=32, help="pairs per request of the client (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.shape:
        ratio, pairs_per_s, *_ = measure(options.shape, options.rounds, options.pairs_per_request)
        print(f"RESULT pairs_per_s={pairs_per_s:.1f} served_ratio={ratio:.3f}")
        return
    demo, _, overhead_ms, merged = measure("demo", options.rounds, options.pairs_per_request)
    base, *_ = measure("base", options.rounds, options.pairs_per_request)
    print(
        f"RESULT served_ratio_demo={demo:.3f} served_ratio_base={base:.3f} "
        f"overhead_ms_1={overhead_ms:.2f} merged_requests={merged:.2f}"
    )


def measure(shape: str, rounds: int, pairs_per_request: int) -> tuple[float, float, float, float]:
    """Served over in-process throughput, served pairs/s, overhead of one document in ms, requests per execution."""
    repository = repository_of(shape)
    searches = list(islice(generated(NUM_DOCUMENTS, seed=1), rounds))
    alone = InProcessReranker(repository)
    with (
        EmbeddedServer(repository) as server,
        RerankClient(server.grpc_url, timeout=None, pairs_per_request=pairs_per_request) as client,
    ):
        check_equal(client, alone, searches[0])
        alone.budget = min(BUDGETS, key=lambda budget: budget_seconds(alone, budget, searches[:2]))

        def served(search: Search) -> object:
            return client.rerank(search.query, search.documents)

        def in_process(search: Search) -> object:
            return alone.score(search.query, list(search.documents))

        hundred = in_turn(served, in_process, searches)
        ones = [Search(search.query, search.documents[:1]) for search in searches for _ in range(8)]
        one = in_turn(served, in_process, ones)
        merged = merged_requests(client, server.grpc_url, searches)
    ratios = [theirs / ours for ours, theirs in hundred]
    served_s = statistics.median(ours for ours, _ in hundred)
    overhead_ms = 1000 * statistics.median(ours - theirs for ours, theirs in one)
    print(
        f"{shape}: {NUM_DOCUMENTS} documents {NUM_DOCUMENTS / served_s:.1f} pairs/s served, ratio to in process "
        f"(micro-batches of {alone.budget} tokens) {statistics.median(ratios):.3f} "
        f"[{min(ratios):.3f} to {max(ratios):.3f}]; 1 document: {overhead_ms:.2f} ms above "
        f"{1000 * statistics.median(theirs for _, theirs in one):.1f} ms; {merged:.2f} requests per execution",
        flush=True,
    )
    return statistics.median(ratios), NUM_DOCUMENTS / served_s, overhead_ms, merged


def repository_of(shape: str) -> Path:
    """Repository with the artefact of this shape, stored in the cache folder."""
    repository = cache_folder() / f"bench-{shape}"
    checkpoint = "demo" if shape == "demo" else str(random_checkpoint(shape, demo_checkpoint(), cache_folder()))
    print(f"{shape}: preparing {repository} ...", file=sys.stderr)
    # Take the current committed files, not those of the time of the export.
    generated_files = shutil.ignore_patterns("*.onnx*", "*.json", "*.plan", "__pycache__")
    shutil.copytree(template_repository(), repository, ignore=generated_files, dirs_exist_ok=True)
    export(checkpoint, repository=repository, force=not (repository / "cross_encoder/1/manifest.json").exists())
    return repository


def check_equal(client: RerankClient, alone: InProcessReranker, search: Search) -> None:
    """Exit if both compute different logits, since their times are then not comparable."""
    ours = np.array(client.score([(search.query, document) for document in search.documents], normalize=False))
    difference = np.abs(ours - alone.score(search.query, list(search.documents))).max()
    if not difference <= 0.1:  # NaN included
        raise SystemExit(f"served and in-process logits differ by {difference:.3f}")


def budget_seconds(alone: InProcessReranker, budget: int, searches: list[Search]) -> float:
    """Seconds of the second of two runs with micro-batches of `budget` tokens."""
    alone.budget = budget
    for search in searches:
        seconds = timed(lambda search: alone.score(search.query, list(search.documents)), search)
    return seconds


def in_turn(
    served: Callable[[Search], object], in_process: Callable[[Search], object], searches: list[Search]
) -> list[tuple[float, float]]:
    """Seconds of both for each search, after a warm-up call of each; the one that goes first alternates."""
    served(searches[0])
    in_process(searches[0])
    pairs = []
    for number, search in enumerate(searches):
        if number % 2:
            theirs = timed(in_process, search)
            pairs.append((timed(served, search), theirs))
        else:
            ours = timed(served, search)
            pairs.append((ours, timed(in_process, search)))
    return pairs


def timed(call: Callable[[Search], object], search: Search) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call(search)
    return time.perf_counter() - start


def merged_requests(client: RerankClient, url: str, searches: list[Search]) -> float:
    """Requests per execution of the cross-encoder under concurrent callers, from Triton's statistics."""
    documents = [document for search in searches for document in search.documents]
    before = totals(url, "cross_encoder")
    all_started = threading.Barrier(CALLERS)

    def caller(number: int) -> None:
        all_started.wait()
        for turn in range(3):
            start = (number * 3 + turn) * CALLER_DOCUMENTS % (len(documents) - CALLER_DOCUMENTS)
            client.rerank(searches[0].query, documents[start : start + CALLER_DOCUMENTS])

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(caller, range(CALLERS)))
    after = totals(url, "cross_encoder")
    return (after.requests - before.requests) / (after.executions - before.executions)


if __name__ == "__main__":
    main()
