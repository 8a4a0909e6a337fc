"""Load test of a running reranker: `locust --locustfile=loadtest/locustfile.py --host=localhost:8001`.

Closed loop (default): each of `--users` has one call in flight. Open loop (`--rate`): calls start at a constant rate
that does not depend on the server, like those of independent callers; `--users` is then the number of users that share
the rate. `--tags` selects scenarios: search (100 documents, the default), chat (20), bulk (1,000).
"""

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import gevent
import gevent.pool
import grpc
import grpc.experimental.gevent
from locust import User, events, tag, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from load.http import GatewayClient
from load.recording import PERCENTILES, Call, Recording, broken_thresholds, percentile
from load.triton_statistics import Statistics
from load.workload import from_file, generated
from triton_rerank import RerankClient, RerankError

SCENARIOS = {"search": 100, "chat": 20, "bulk": 1_000}
DEFAULT_HOST = "localhost:8001"

recording = Recording()
unsent: list[Call] = []  # calls of a worker process that are not yet sent to the master
unread = 0  # failed attempts to read Triton's statistics


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add this load test's options to Locust's."""
    group = parser.add_argument_group("reranker")
    group.add_argument("--rate", type=float, default=0.0, help="calls per second, open loop (default: closed loop)")
    group.add_argument(
        "--gateway", default="", metavar="URL", help="send calls over HTTP to a gateway, such as http://localhost:8080"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of the generated texts (default: %(default)s)")
    group.add_argument(
        "--searches", default="", metavar="FILE.jsonl", help="searches to send instead of generated ones"
    )
    group.add_argument("--call-timeout", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s")
    group.add_argument(
        "--retries", type=int, default=0, help="retries of the client (default: %(default)s, which shows refusals)"
    )
    group.add_argument(
        "--max-p95-ms", type=float, default=0.0, help="threshold; exit status 1 above it (default: no threshold)"
    )
    group.add_argument(
        "--max-failure-ratio", type=float, default=0.01, help="threshold; exit status 1 above it (default: %(default)s)"
    )
    group.add_argument(
        "--recording",
        action="append",
        default=[],
        metavar="FILE.json",
        help="write every call and Triton's statistics; may be given several times",
    )
    parser.set_defaults(tags=["search"], host=DEFAULT_HOST)


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Prepare this process. Locust has forked its workers by now; gRPC must not be used before a fork."""
    grpc.experimental.gevent.init_gevent()  # before the first channel, or gRPC's threads block every greenlet
    options = environment.parsed_options
    if options.searches:
        try:
            next(from_file(Path(options.searches)))
        except (OSError, ValueError) as error:
            sys.exit(f"--searches: {error}")
    if not isinstance(environment.runner, MasterRunner):
        # One channel for all users of this process, as in an application.
        host = environment.host or DEFAULT_HOST
        try:
            RerankUser.client = _client(host, options)
        except RerankError as error:
            sys.exit(f"--host {host}: {error}")
    if not isinstance(environment.runner, WorkerRunner):
        recording.options = {
            name: getattr(options, name) for name in ("num_users", "rate", "seed", "searches", "gateway")
        }
        recording.options["scenarios"] = " ".join(options.tags or SCENARIOS)


def _client(host: str, options: Namespace) -> RerankClient | GatewayClient:
    if options.gateway:
        return GatewayClient(options.gateway, timeout=options.call_timeout, connections=options.num_users or 1)
    return RerankClient(host, timeout=options.call_timeout, max_retries=options.retries)


@events.test_start.add_listener
def watch_server(environment: Environment, **_: object) -> None:
    """Read Triton's statistics every second, in the process that writes the recording."""
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_watch, environment.host or DEFAULT_HOST, environment)


def _watch(host: str, environment: Environment) -> None:
    global unread  # noqa: PLW0603  (a counter of the process)
    statistics = Statistics(host)
    while environment.runner is not None and environment.runner.state not in ("stopping", "stopped", "cleanup"):
        try:
            recording.states += statistics.read()
        except grpc.RpcError:
            unread += 1
        gevent.sleep(1)
    statistics.close()


@events.report_to_master.add_listener
def send_calls(client_id: str, data: dict[str, Any], **_: object) -> None:
    """Send a worker's calls to the master with its regular report."""
    data["calls"] = list(unsent)
    unsent.clear()


@events.worker_report.add_listener
def take_calls(client_id: str, data: dict[str, Any], **_: object) -> None:
    """Add a worker's calls to the master's recording."""
    recording.calls += [Call(*call) for call in data.get("calls", ())]


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Write the recording, print the result and set the exit status."""
    if isinstance(environment.runner, WorkerRunner):
        return
    options = environment.parsed_options
    for file in options.recording:
        recording.save(Path(file))
    latencies = recording.latencies_ms()
    figures = "  ".join(f"p{percent} {percentile(latencies, percent):.0f} ms" for percent in PERCENTILES)
    print(
        f"{len(recording.calls)} calls in {recording.duration_s():.1f} s  {recording.pairs_per_s():.1f} pairs/s  "
        f"{figures}  failed {recording.failure_ratio():.1%} {dict(recording.errors()) or ''}"
    )
    broken = list(broken_thresholds(recording, options.max_p95_ms or None, options.max_failure_ratio))
    for sentence in broken:
        print(f"threshold broken: {sentence}")
    if unread:
        print(f"Triton's statistics could not be read {unread} times")
    # Locust collects exceptions other than failed calls, such as an unreadable --searches file.
    exceptions = environment.runner.exceptions if environment.runner is not None else {}
    for exception in exceptions.values():
        print(f"{exception['count']} users' tasks raised: {exception['msg']}")
    environment.process_exit_code = 1 if broken or exceptions else 0


class RerankUser(User):
    """A caller of the reranker."""

    client: RerankClient | GatewayClient

    def on_start(self) -> None:
        """Choose this user's seed and its first due time."""
        options = self.environment.parsed_options
        self._options = options
        seed = f"{options.seed}/{getattr(self.environment.runner, 'worker_index', 0)}/{_number_of_user()}"
        if options.searches:
            self._searches = dict.fromkeys(SCENARIOS, from_file(Path(options.searches)))
        else:
            self._searches = {name: generated(count, seed) for name, count in SCENARIOS.items()}
        self._interval_s = (options.num_users or 1) / options.rate if options.rate else 0.0
        self._due_s = time.time()
        self._in_flight = gevent.pool.Group()

    def on_stop(self) -> None:
        """Stop the calls in flight."""
        self._in_flight.kill()

    def wait_time(self) -> float:
        """Seconds until the next due time in an open loop, 0 in a closed loop."""
        return max(0.0, self._due_s - time.time()) if self._interval_s else 0.0

    @tag("search")
    @task
    def search(self) -> None:
        """A page of results: 100 documents."""
        self._start("search")

    @tag("chat")
    @task
    def chat(self) -> None:
        """Passages for a prompt: 20 documents."""
        self._start("chat")

    @tag("bulk")
    @task
    def bulk(self) -> None:
        """A long list: 1,000 documents."""
        self._start("bulk")

    def _start(self, scenario: str) -> None:
        if self._interval_s:
            self._in_flight.spawn(self._call, scenario, self._due_s)
            self._due_s += self._interval_s
        else:
            self._call(scenario, time.time())

    def _call(self, scenario: str, start_s: float) -> None:
        search = next(self._searches[scenario])
        if not self._interval_s:
            start_s = time.time()  # exclude the time to generate the texts
        failure: RerankError | None = None
        try:
            self.client.rerank(search.query, search.documents)
        except RerankError as error:
            failure = error
        latency_ms = (time.time() - start_s) * 1e3
        call = Call(scenario, start_s, latency_ms, len(search.documents), type(failure).__name__ if failure else "")
        (unsent if isinstance(self.environment.runner, WorkerRunner) else recording.calls).append(call)
        self.environment.events.request.fire(
            request_type="rerank",
            name=scenario,
            response_time=latency_ms,
            response_length=len(search.documents),
            exception=failure,
            context={},
        )


_users = 0


def _number_of_user() -> int:
    """Number of this user within the process, from 0."""
    global _users  # noqa: PLW0603  (a counter of the process; no greenlet switch between the two lines)
    _users += 1
    return _users - 1
