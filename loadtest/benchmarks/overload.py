"""Five times the load that saturates the server: `PYTHONPATH=loadtest python -m benchmarks.overload`.

The capacity is the throughput under the fewest callers that saturate the server. Then calls arrive in a Poisson process
(open loop): a minute at that rate, and a minute at five times that rate. The exit status is 1 unless
ServerOverloadedError is the only error, the p95 of accepted calls stays within twice the p95 at capacity, no call
hangs, the throughput stays at least 0.95 of the capacity, and it is back five seconds later.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

from benchmarks.bench import repository_of
from benchmarks.requests import searches_of
from benchmarks.shapes import SHAPES
from benchmarks.variants import with_max_wait
from load.recording import percentile
from load.workload import Search
from triton_rerank import RerankClient, RerankError, ServerOverloadedError
from triton_rerank_build import EmbeddedServer

CALLERS = (1, 2, 4, 8, 16, 32, 64)
SATURATED = 0.95  # part of the next step's throughput at which a step counts as saturated
TIMES = 5
RECOVERY_S = 5
TIMEOUT_S = 300.0  # a call that reaches it counts as hung


@dataclass
class Outcome:
    """Results of the calls of one load."""

    num_documents: int
    seconds: float = 0.0
    accepted_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def pairs_per_s(self) -> float:
        """Throughput of accepted calls."""
        return len(self.accepted_s) * self.num_documents / self.seconds

    @property
    def p95_s(self) -> float:
        """95th percentile of the latency of accepted calls."""
        return percentile(sorted(self.accepted_s), 95)

    @property
    def refused(self) -> int:
        """Calls that ended in ServerOverloadedError."""
        return self.errors[ServerOverloadedError.__name__]

    def __str__(self) -> str:
        errors = ", ".join(f"{number} {name}" for name, number in self.errors.items()) or "no error"
        return f"{self.pairs_per_s:7.1f} pairs/s, p95 {self.p95_s:6.2f} s, {len(self.accepted_s)} accepted, {errors}"


class Load:
    """Calls to one server, with the client's default retries.

    No client has two calls at a time, as of independent callers: the calls of one client wait in it for their turn.

    Args:
        url: Address of the server.
        searches: Searches, used in rotation.
        priority: Priority of the calls.
    """

    def __init__(self, url: str, searches: Sequence[Search], priority: int | None) -> None:
        self._url, self._searches, self._priority = url, searches, priority
        self._lock = threading.Lock()
        self._idle: list[RerankClient] = []

    def close(self) -> None:
        """Close the clients."""
        for client in self._idle:
            client.close()

    def closed(self, callers: int, seconds: float) -> Outcome:
        """Closed loop of `callers` for `seconds`."""
        outcome, start = Outcome(len(self._searches[0].documents)), time.monotonic()

        def caller(number: int) -> None:
            for turn in count(number):
                if time.monotonic() >= start + seconds:
                    return
                self._call(turn, time.monotonic(), outcome)

        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(caller, range(callers)))
        outcome.seconds = time.monotonic() - start
        return outcome

    def open(self, calls_per_s: float, seconds: float) -> Outcome:
        """Open loop: a Poisson process with a mean of `calls_per_s`. Latency counts from the due time."""
        outcome, start = Outcome(len(self._searches[0].documents)), time.monotonic()
        calls: list[Future[None]] = []
        with ThreadPoolExecutor(1000) as pool:
            for turn, after in enumerate(arrivals(calls_per_s, seconds)):
                time.sleep(max(0.0, start + after - time.monotonic()))
                calls.append(pool.submit(self._call, turn, start + after, outcome))
        for call in calls:
            call.result()
        outcome.seconds = time.monotonic() - start
        return outcome

    def _call(self, turn: int, due: float, outcome: Outcome) -> None:
        search = self._searches[turn % len(self._searches)]
        try:
            client = self._idle.pop()
        except IndexError:
            client = RerankClient(self._url, timeout=TIMEOUT_S)
        try:
            client.rerank(search.query, search.documents, priority=self._priority)
        except RerankError as error:
            with self._lock:
                outcome.errors[type(error).__name__] += 1
        else:
            with self._lock:
                outcome.accepted_s.append(time.monotonic() - due)
        self._idle.append(client)


def arrivals(per_s: float, seconds: float) -> Iterator[float]:
    """Arrival times of a Poisson process in seconds from the start; the same in every run."""
    chance, arrival = random.Random(0), 0.0
    while (arrival := arrival + chance.expovariate(per_s)) < seconds:
        yield arrival


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status: 1 if an expectation is not met."""
    options = parse(arguments)
    searches = searches_of(options.documents, options.short)
    repository = repository_of(options.shape)
    with ExitStack() as stack:
        if options.max_wait:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            repository = with_max_wait(options.max_wait, repository, Path(folder))
        server = stack.enter_context(EmbeddedServer(repository))
        load = stack.enter_context(closing(Load(server.grpc_url, searches, options.priority)))
        load.closed(2, 3)  # warm-up
        callers = options.callers or saturating(load, options.step_seconds)
        before = printed(f"{callers} callers", load.closed(callers, 2 * options.step_seconds))
        calls_per_s = before.pairs_per_s / options.documents
        at_capacity = printed(f"{calls_per_s:.2f} calls/s, capacity", load.open(calls_per_s, options.seconds))
        over = printed(f"{TIMES * calls_per_s:.2f} calls/s", load.open(TIMES * calls_per_s, options.seconds))
        time.sleep(RECOVERY_S)
        after = printed(f"{RECOVERY_S} s later, {callers} callers", load.closed(callers, 2 * options.step_seconds))
    wrong = sum((at_capacity.errors + over.errors).values()) - at_capacity.refused - over.refused
    hung = over.errors["RequestTimeoutError"]
    ratio = over.p95_s / at_capacity.p95_s
    recovered = after.pairs_per_s / before.pairs_per_s
    print(
        f"RESULT capacity_callers={callers} capacity_pairs_per_s={before.pairs_per_s:.1f} "
        f"accepted_p95_ratio={ratio:.2f} refused={over.refused} accepted={len(over.accepted_s)} other_errors={wrong} "
        f"hung={hung} throughput_ratio={over.pairs_per_s / before.pairs_per_s:.2f} recovered_ratio={recovered:.2f}"
    )
    kept = over.pairs_per_s / before.pairs_per_s
    # A ratio is NaN, and every comparison with it false, if no call was accepted.
    return 0 if not (wrong or after.errors or hung) and ratio <= 2 and kept >= 0.95 and recovered >= 0.9 else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="demo", help="checkpoint (default: %(default)s)")
    parser.add_argument("--callers", type=int, help="callers that saturate the server (default: measured)")
    parser.add_argument("--documents", type=int, default=100, help="documents per call (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="documents of a dozen words, not of 130 tokens")
    parser.add_argument("--priority", type=int, help="priority of each call (default: the server's)")
    parser.add_argument(
        "--max-wait", type=float, help="another max_wait_s of cross_encoder (default: the committed one)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each open loop (default: %(default)g)")
    parser.add_argument(
        "--step-seconds", type=float, default=10.0, help="duration of each closed loop (default: %(default)g)"
    )
    return parser.parse_args(arguments)


def saturating(load: Load, seconds: float) -> int:
    """The first of CALLERS that reaches SATURATED of the next step's throughput."""
    before = printed("1 caller", load.closed(1, seconds))
    for callers, more in pairwise(CALLERS):
        outcome = printed(f"{more} callers", load.closed(more, seconds))
        if outcome.errors or before.pairs_per_s >= SATURATED * outcome.pairs_per_s:
            return callers
        before = outcome
    return CALLERS[-1]


def printed(title: str, outcome: Outcome) -> Outcome:
    """Print `outcome` on stderr and return it."""
    print(f"{title:28} {outcome}", file=sys.stderr, flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
