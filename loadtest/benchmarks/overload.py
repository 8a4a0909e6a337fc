"""Five times the load that the server can take: `PYTHONPATH=loadtest python -m benchmarks.overload`.

The capacity is the throughput under the fewest callers that saturate the server. Then calls arrive at random moments
(Poisson), for a minute at that rate and for a minute at five times that rate, whatever the server does. Held true: only
ServerOverloadedError comes back; the 95th percentile of accepted calls stays within twice of that at capacity; no call
hangs; five seconds later the callers get what they got before. The exit status is 1 where one does not hold.
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
from dataclasses import dataclass, field
from itertools import count, islice, pairwise
from pathlib import Path

from benchmarks.bench import repository_of
from benchmarks.shapes import SHAPES
from benchmarks.variants import with_queue_limit
from load.recording import percentile
from load.workload import Search, generated
from triton_rerank import RerankClient, RerankError, ServerOverloadedError
from triton_rerank_build import EmbeddedServer

CALLERS = (1, 2, 4, 8, 16, 32, 64)
SATURATED = 0.95  # of the best throughput: capacity is that of the fewest callers that reach it
TIMES = 5
RECOVERY_S = 5
TIMEOUT_S = 300.0  # of a call; one that takes it hangs


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
        told = ", ".join(f"{number} {name}" for name, number in self.errors.items()) or "no error"
        return f"{self.pairs_per_s:7.1f} pairs/s, p95 {self.p95_s:6.2f} s, {len(self.accepted_s)} accepted, {told}"


class Load:
    """Calls to one server by a client that retries as clients do.

    Args:
        client: Of the server.
        searches: What is asked, by turns.
        priority: Of the calls.
    """

    def __init__(self, client: RerankClient, searches: Sequence[Search], priority: int | None) -> None:
        self._client, self._searches, self._priority = client, searches, priority
        self._lock = threading.Lock()

    def closed(self, callers: int, seconds: float) -> Outcome:
        """`callers` that call one after the other for `seconds`."""
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
        """Calls at random moments, `calls_per_s` in the mean; their seconds count from the moment they were due."""
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
            self._client.rerank(search.query, search.documents, priority=self._priority)
        except RerankError as error:
            with self._lock:
                outcome.errors[type(error).__name__] += 1
        else:
            with self._lock:
                outcome.accepted_s.append(time.monotonic() - due)


def arrivals(per_s: float, seconds: float) -> Iterator[float]:
    """Seconds from the start at which calls of a Poisson process arrive, the same each time."""
    chance, at = random.Random(0), 0.0
    while (at := at + chance.expovariate(per_s)) < seconds:
        yield at


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether it holds."""
    options = parse(arguments)
    searches = list(islice(generated(options.documents, seed=5), 16))
    repository = repository_of(options.shape)
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(
            with_queue_limit(options.limit, repository, Path(folder)) if options.limit else repository
        ) as server,
        RerankClient(server.grpc_url, timeout=TIMEOUT_S) as client,
    ):
        load = Load(client, searches, options.priority)
        load.closed(2, 3)  # warm
        callers = options.callers or saturating(load, options.step_seconds)
        before = said(f"{callers} callers", load.closed(callers, 2 * options.step_seconds))
        calls_per_s = before.pairs_per_s / options.documents
        at_capacity = said(f"{calls_per_s:.2f} calls/s, capacity", load.open(calls_per_s, options.seconds))
        over = said(f"{TIMES * calls_per_s:.2f} calls/s", load.open(TIMES * calls_per_s, options.seconds))
        time.sleep(RECOVERY_S)
        after = said(f"{RECOVERY_S} s later, {callers} callers", load.closed(callers, 2 * options.step_seconds))
    wrong = sum((at_capacity.errors + over.errors).values()) - at_capacity.refused - over.refused
    hung = over.errors["RequestTimeoutError"]
    ratio = over.p95_s / at_capacity.p95_s
    recovered = after.pairs_per_s / before.pairs_per_s
    print(
        f"RESULT capacity_callers={callers} capacity_pairs_per_s={before.pairs_per_s:.1f} "
        f"accepted_p95_ratio={ratio:.2f} refused={over.refused} accepted={len(over.accepted_s)} other_errors={wrong} "
        f"hung={hung} throughput_ratio={over.pairs_per_s / before.pairs_per_s:.2f} recovered_ratio={recovered:.2f}"
    )
    return int(bool(wrong or after.errors or hung or ratio > 2 or recovered < 0.9))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="demo", help="checkpoint (default: %(default)s)")
    parser.add_argument("--callers", type=int, help="that saturate the server (default: found)")
    parser.add_argument("--documents", type=int, default=100, help="of each call (default: %(default)s)")
    parser.add_argument("--priority", type=int, help="of each call (default: the server's)")
    parser.add_argument(
        "--limit", type=int, help="max_queue_size of cross_encoder, for a trial (default: as committed)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each open load (default: %(default)g)")
    parser.add_argument(
        "--step-seconds", type=float, default=10.0, help="of each step to capacity (default: %(default)g)"
    )
    return parser.parse_args(arguments)


def saturating(load: Load, seconds: float) -> int:
    """The fewest callers of CALLERS that reach the throughput of the next more."""
    before = said("1 caller", load.closed(1, seconds))
    for callers, more in pairwise(CALLERS):
        outcome = said(f"{more} callers", load.closed(more, seconds))
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
