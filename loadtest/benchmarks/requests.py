"""One request a call, or several: `PYTHONPATH=loadtest python -m benchmarks.requests`.

Calls of 10, 100 and 1,000 documents in requests of as many pairs as suit the server (the default), and in requests of
32 pairs: the latency of a lone call, and the throughput of 8 and 32 callers of one client. Both alternate on the demo
reranker, `--rounds` times. `--host` names servers that run instead.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice

from benchmarks.bench import repository_of
from load.workload import Search, generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

DOCUMENTS = (10, 100, 1000)
CALLERS = (8, 32)
SMALL = 32
SECONDS = 1.0  # of lone calls, at least; then as many calls as that took, and at least one for each caller


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (default: %(default)s)")
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS, help="documents a call")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS, help="callers at once")
    parser.add_argument("--short", action="store_true", help="documents of a dozen words, not of 130 tokens")
    parser.add_argument("--host", nargs="+", default=[], help="addresses of running servers, compared with each other")
    options = parser.parse_args()
    with ExitStack() as stack:
        clients = {host: RerankClient(host, timeout=None) for host in options.host}
        if not clients:
            url = stack.enter_context(EmbeddedServer(repository_of("demo"))).grpc_url
            clients = {
                "default": RerankClient(url, timeout=None),
                f"{SMALL}_pairs": RerankClient(url, timeout=None, pairs_per_request=SMALL),
            }
        for client in clients.values():
            stack.enter_context(client)
        results = [
            f"{name}_{documents}_{what}={value:.2f}"
            for documents in options.documents
            for name, values in compare(
                clients, searches_of(documents, options.short), options.callers, options.rounds
            ).items()
            for what, value in values.items()
        ]
    print("RESULT", *results)


def searches_of(num_documents: int, short: bool) -> list[Search]:
    """Eight searches."""
    searches = list(islice(generated(num_documents, seed=3), 8))
    if not short:
        return searches
    shortened = [" ".join(f"{number} of {search.query}".split()[:12]) for search in searches for number in range(100)]
    return [
        replace(search, documents=tuple(islice(cycle(shortened[100 * turn :]), num_documents)))
        for turn, search in enumerate(searches)
    ]


def compare(
    clients: dict[str, RerankClient], searches: Sequence[Search], callers: Sequence[int], rounds: int
) -> dict[str, dict[str, float]]:
    """Medians for each client: seconds of a lone call, pairs/s of each number of callers; printed, and as ratios."""
    num_documents = len(searches[0].documents)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in clients}
    for number in range(rounds + 1):
        for name in [*clients][:: 1 if number % 2 else -1]:
            client = clients[name]
            values = {"lone_s": lone(client, searches)}
            if number:  # the first round compiles kernels for its shapes
                values |= {f"pairs_per_s_{count}": together(client, searches, count) for count in callers}
                for what, value in values.items():
                    found[name].setdefault(what, []).append(value)
    medians = {name: {what: statistics.median(each) for what, each in values.items()} for name, values in found.items()}
    for name, values in medians.items():
        shown = ", ".join(f"{what} {value:.3f}" for what, value in values.items())
        print(f"{num_documents} documents, {name}: {shown}", file=sys.stderr, flush=True)
    reference = next(iter(medians.values()))
    return {name: {what: value / reference[what] for what, value in values.items()} for name, values in medians.items()}


def lone(client: RerankClient, searches: Sequence[Search]) -> float:
    """Median seconds of a call of a single caller."""
    seconds: list[float] = []
    while not seconds or sum(seconds) < SECONDS:
        search = searches[len(seconds) % len(searches)]
        start = time.perf_counter()
        client.rerank(search.query, search.documents)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def together(client: RerankClient, searches: Sequence[Search], callers: int) -> float:
    """Pairs per second of `callers` at once, two calls each."""
    chosen = [searches[number % len(searches)] for number in range(2 * callers)]
    with ThreadPoolExecutor(callers) as pool:
        start = time.perf_counter()
        list(pool.map(lambda search: client.rerank(search.query, search.documents), chosen))
    return sum(len(search.documents) for search in chosen) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
