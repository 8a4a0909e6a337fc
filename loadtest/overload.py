"""Five times the callers that the server has room for: `python loadtest/overload.py`.

The capacity is --callers, or the fewest callers that reach the best throughput. Then five times as many call as often
as those did, for a minute. Held true: only ServerOverloadedError comes back; the 95th percentile of accepted calls
stays within twice of that at capacity; no call hangs; five seconds later the server does what it did before. The exit
status is 1 where one does not hold.
"""

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from bench import repository_of
from recording import percentile
from shapes import SHAPES
from triton_rerank import RerankClient, RerankError, ServerOverloadedError
from triton_rerank_build import EmbeddedServer
from workload import Search, generated

CALLERS = (1, 2, 4, 8, 16, 32, 64)
SATURATED = 0.95  # of the best throughput: capacity is the fewest callers that reach it
TIMES = 5
RECOVERY_S = 5
TIMEOUT_S = 120.0  # of a call; one that takes it hangs


@dataclass
class Outcome:
    """What came of the calls of one load."""

    num_documents: int
    seconds: float = 0.0
    accepted_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def pairs_per_s(self) -> float:
        """Of the accepted calls."""
        return len(self.accepted_s) * self.num_documents / self.seconds

    @property
    def p95_s(self) -> float:
        """Of the accepted calls."""
        return percentile(sorted(self.accepted_s), 95)

    @property
    def refused(self) -> int:
        """Calls that ended in ServerOverloadedError."""
        return self.errors[ServerOverloadedError.__name__]

    def __str__(self) -> str:
        told = ", ".join(f"{count} {name}" for name, count in self.errors.items()) or "no error"
        return f"{self.pairs_per_s:7.1f} pairs/s, p95 {self.p95_s:6.2f} s, {len(self.accepted_s)} accepted, {told}"


class Load:
    """Callers, each with a client of its own that retries as clients do.

    Args:
        url: Of the server.
        searches: What they ask, by turns.
        priority: Of their calls.
    """

    def __init__(self, url: str, searches: Sequence[Search], priority: int | None) -> None:
        self._url, self._searches, self._priority = url, searches, priority
        self._lock = threading.Lock()

    def run(self, callers: int, seconds: float, every_s: float = 0.0) -> Outcome:
        """`callers` that call for `seconds`, no caller more often than every `every_s`."""
        outcome = Outcome(len(self._searches[0].documents))
        start = time.monotonic()
        threads = [
            threading.Thread(target=self._caller, args=(number, callers, seconds, every_s, outcome))
            for number in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcome.seconds = time.monotonic() - start
        return outcome

    def _caller(self, number: int, callers: int, seconds: float, every_s: float, outcome: Outcome) -> None:
        due = time.monotonic() + every_s * number / callers
        end = time.monotonic() + seconds
        with RerankClient(self._url, timeout=TIMEOUT_S) as client:
            for search in self._turns(number):
                time.sleep(max(0.0, due - time.monotonic()))
                if (start := time.monotonic()) >= end:
                    return
                due = max(due + every_s, start)
                try:
                    client.rerank(search.query, search.documents, priority=self._priority)
                except RerankError as error:
                    with self._lock:
                        outcome.errors[type(error).__name__] += 1
                else:
                    with self._lock:
                        outcome.accepted_s.append(time.monotonic() - start)

    def _turns(self, number: int) -> Iterator[Search]:
        while True:
            yield self._searches[number % len(self._searches)]
            number += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether it holds."""
    options = parse(arguments)
    searches = list(islice(generated(options.documents, seed=5), 16))
    with EmbeddedServer(repository_of(options.shape)) as server:
        load = Load(server.grpc_url, searches, options.priority)
        load.run(2, 3)  # warm
        callers = options.callers or capacity(load, options.step_seconds)
        at_capacity = said(f"at capacity, {callers} callers", load.run(callers, 2 * options.step_seconds))
        every_s = callers * options.documents / at_capacity.pairs_per_s
        over = said(f"{TIMES * callers} callers", load.run(TIMES * callers, options.seconds, every_s))
        time.sleep(RECOVERY_S)
        after = said(f"{RECOVERY_S} s later, {callers} callers", load.run(callers, 2 * options.step_seconds))
    wrong = sum(over.errors.values()) - over.refused + sum(after.errors.values())
    hung = over.errors["RequestTimeoutError"]
    ratio = over.p95_s / at_capacity.p95_s
    recovered = after.pairs_per_s / at_capacity.pairs_per_s
    print(
        f"RESULT capacity_callers={callers} capacity_pairs_per_s={at_capacity.pairs_per_s:.1f} "
        f"accepted_p95_ratio={ratio:.2f} refused={over.refused} accepted={len(over.accepted_s)} other_errors={wrong} "
        f"hung={hung} throughput_ratio={over.pairs_per_s / at_capacity.pairs_per_s:.2f} recovered_ratio={recovered:.2f}"
    )
    return int(bool(wrong or hung or ratio > 2 or recovered < 0.9))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="demo", help="checkpoint (default: %(default)s)")
    parser.add_argument("--callers", type=int, help="that are the capacity (default: found)")
    parser.add_argument("--documents", type=int, default=100, help="of each call (default: %(default)s)")
    parser.add_argument("--priority", type=int, help="of each call (default: the server's)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: %(default)g)")
    parser.add_argument("--step-seconds", type=float, default=10.0, help="of each step to it (default: %(default)g)")
    return parser.parse_args(arguments)


def capacity(load: Load, seconds: float) -> int:
    """The fewest callers of CALLERS that reach the throughput of the next more."""
    before = said("1 caller", load.run(1, seconds))
    for callers, more in pairwise(CALLERS):
        outcome = said(f"{more} callers", load.run(more, seconds))
        if outcome.errors or before.pairs_per_s >= SATURATED * outcome.pairs_per_s:
            return callers
        before = outcome
    return CALLERS[-1]


def said(title: str, outcome: Outcome) -> Outcome:
    """`outcome`, told on stderr."""
    print(f"{title:28} {outcome}", file=sys.stderr, flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
