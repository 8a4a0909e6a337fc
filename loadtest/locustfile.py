"""Load test of a running reranker: `locust --locustfile=loadtest/locustfile.py --host=localhost:8001`.

Closed loop (default): each of `--users` has one call under way. Open loop (`--rate`): calls start at a constant rate
whatever the server does, as those of independent people do; `--users` then only says how many share the rate.
`--tags` chooses the scenario: search (100 documents, the default), chat (20), bulk (1,000), or several of them.
"""

import time
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

from load.recording import Call, Recording, broken_thresholds, percentile
from load.triton_statistics import Statistics
from load.workload import from_file, generated
from triton_rerank import RerankClient, RerankError

SCENARIOS = {"search": 100, "chat": 20, "bulk": 1_000}
DEFAULT_HOST = "localhost:8001"

recording = Recording()
unsent: list[Call] = []  # a worker's calls that the master does not know yet


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Our options beside Locust's own."""
    group = parser.add_argument_group("reranker")
    group.add_argument("--rate", type=float, default=0.0, help="calls per second, open loop (default: closed loop)")
    group.add_argument("--seed", type=int, default=0, help="of the generated texts (default: %(default)s)")
    group.add_argument(
        "--searches", default="", metavar="FILE.jsonl", help="searches to send instead of generated ones"
    )
    group.add_argument("--call-timeout", type=float, default=60.0, metavar="SECONDS", help="default: %(default)s")
    group.add_argument("--retries", type=int, default=0, help="of the client (default: %(default)s, to see refusals)")
    group.add_argument("--max-p95-ms", type=float, default=0.0, help="exit with 1 above it (default: no threshold)")
    group.add_argument(
        "--max-failure-ratio", type=float, default=0.01, help="exit with 1 above it (default: %(default)s)"
    )
    group.add_argument("--recording", default="", metavar="FILE.json", help="write every call and Triton's statistics")
    parser.set_defaults(tags=["search"], host=DEFAULT_HOST)


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Make this process ready. Locust forks its workers before, and gRPC must not be used before a fork."""
    grpc.experimental.gevent.init_gevent()  # before the first channel, or gRPC's threads block every greenlet
    options = environment.parsed_options
    if not isinstance(environment.runner, MasterRunner):
        # One channel for all users of this process, as an application has.
        RerankUser.client = RerankClient(
            environment.host or DEFAULT_HOST, timeout=options.call_timeout, max_retries=options.retries
        )
    if not isinstance(environment.runner, WorkerRunner):
        recording.options = {name: getattr(options, name) for name in ("num_users", "rate", "seed", "searches")}
        recording.options["scenarios"] = " ".join(options.tags or SCENARIOS)


@events.test_start.add_listener
def watch_server(environment: Environment, **_: object) -> None:
    """Look at Triton's statistics every second, in the process that makes the report."""
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_watch, environment.host or DEFAULT_HOST, environment)


def _watch(host: str, environment: Environment) -> None:
    statistics = Statistics(host)
    while environment.runner is not None and environment.runner.state not in ("stopping", "stopped", "cleanup"):
        try:
            recording.states += statistics.read()
        except grpc.RpcError:
            environment.events.user_error.fire(
                user_instance=None, exception=ConnectionError(f"no statistics from {host}"), tb=None
            )
        gevent.sleep(1)
    statistics.close()


@events.report_to_master.add_listener
def send_calls(client_id: str, data: dict[str, Any], **_: object) -> None:
    """A worker's calls travel to the master with its regular report."""
    data["calls"] = list(unsent)
    unsent.clear()


@events.worker_report.add_listener
def take_calls(client_id: str, data: dict[str, Any], **_: object) -> None:
    """The master keeps them."""
    recording.calls += [Call(*call) for call in data.get("calls", ())]


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Write the recording, and make the exit status."""
    if isinstance(environment.runner, WorkerRunner):
        return
    options = environment.parsed_options
    if options.recording:
        recording.save(Path(options.recording))
    latencies = recording.latencies_ms()
    figures = "  ".join(f"p{percent} {percentile(latencies, percent):.0f} ms" for percent in (50, 95, 99))
    print(
        f"{len(recording.calls)} calls in {recording.duration_s():.1f} s  {recording.pairs_per_s():.1f} pairs/s  "
        f"{figures}  failed {recording.failure_ratio():.1%} {dict(recording.errors()) or ''}"
    )
    broken = list(broken_thresholds(recording, options.max_p95_ms or None, options.max_failure_ratio))
    for sentence in broken:
        print(f"threshold broken: {sentence}")
    environment.process_exit_code = 1 if broken else 0


class RerankUser(User):
    """A caller of the reranker."""

    client: RerankClient

    def on_start(self) -> None:
        """Take a seed of its own, and the first arrival."""
        options = self.environment.parsed_options
        self._options = options
        seed = f"{options.seed}/{getattr(self.environment.runner, 'worker_index', 0)}/{_number_of_user()}"
        if options.searches:
            self._searches = dict.fromkeys(SCENARIOS, from_file(Path(options.searches)))
        else:
            self._searches = {name: generated(count, seed) for name, count in SCENARIOS.items()}
        self._interval_s = (options.num_users or 1) / options.rate if options.rate else 0.0
        self._due_s = time.time()
        self._under_way = gevent.pool.Group()

    def on_stop(self) -> None:
        """Leave nothing behind."""
        self._under_way.kill()

    def wait_time(self) -> float:
        """Until the next arrival in an open loop; nothing in a closed one."""
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
            self._under_way.spawn(self._call, scenario, self._due_s)
            self._due_s += self._interval_s
        else:
            self._call(scenario, time.time())

    def _call(self, scenario: str, start_s: float) -> None:
        search = next(self._searches[scenario])
        if not self._interval_s:
            start_s = time.time()  # making the texts is not the server's time
        failure: RerankError | None = None
        try:
            self.client.rerank(search.query, search.documents)
        except RerankError as error:
            failure = error
        latency_ms = (time.time() - start_s) * 1e3
        call = Call(scenario, start_s, latency_ms, len(search.documents), type(failure).__name__ if failure else "")
        kept = unsent if isinstance(self.environment.runner, WorkerRunner) else recording.calls
        kept.append(call)
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
    """0, 1, 2 ... within this process."""
    global _users  # noqa: PLW0603 - a counter of the process, and greenlets do not interrupt each other here
    _users += 1
    return _users - 1
