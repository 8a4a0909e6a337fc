"""What two versions of a model cost a client: `PYTHONPATH=loadtest python -m benchmarks.versions OLD NEW`.

OLD and NEW are addresses of servers whose models compute as fast as each other, in different versions. Calls of several
requests alternate between a client whose addresses are both OLD and one of OLD and NEW: a call's requests demand the
version that answered the first of them, so the other server refuses half of the rest, and they are sent again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice

from load.workload import Search, generated
from triton_rerank import RerankClient


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="address of a server")
    parser.add_argument("new", help="address of a server with another version of the model")
    parser.add_argument("--calls", type=int, default=200, help="of each client (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=100, help="of each call (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=8, help="of each call (default: %(default)s)")
    options = parser.parse_args()
    searches = list(islice(generated(options.documents, seed=3), 8))
    print(result(options.old, options.new, searches, options.calls, -(-options.documents // options.requests)))


def result(old: str, new: str, searches: Sequence[Search], calls: int, pairs_per_request: int) -> str:
    """The line RESULT: median time with two versions over that with one, and requests that a call sends again."""
    fleets = {"same": [old, old], "mixed": [old, new]}
    seconds: dict[str, list[float]] = {name: [] for name in fleets}
    again, versions = 0, set()
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(RerankClient(urls, timeout=None, pairs_per_request=pairs_per_request))
            for name, urls in fleets.items()
        }
        for number in range(-len(searches), calls):  # the first ones open connections and compile kernels
            search = searches[number % len(searches)]
            for name in [*clients][:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                response = clients[name].rerank(search.query, search.documents)
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
                if number >= 0 and name == "mixed":
                    again += response.timing.num_retries
                    versions.add(response.model_version)
    same, mixed = (statistics.median(seconds[name]) for name in fleets)
    print(f"one version {1e3 * same:.1f} ms, two {1e3 * mixed:.1f} ms", file=sys.stderr)
    return f"RESULT time_ratio={mixed / same:.3f} sent_again_a_call={again / calls:.2f} versions={len(versions)}"


if __name__ == "__main__":
    main()
