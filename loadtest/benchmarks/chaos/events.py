"""What happens to the servers, as data: what begins, how long it lasts, what ends it, and what callers may see."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.chaos.callers import TIMEOUT_S, Callers, kind_of, logits
from benchmarks.chaos.model import LONGEST, WORDS
from benchmarks.chaos.stage import NUM_SERVERS, Stage, limit_memory
from load.workload import Search
from triton_rerank import RerankClient, RerankError

Act = Callable[[Stage, Callers], None]


@dataclass(frozen=True)
class Event:
    """Something that goes wrong.

    Attributes:
        name: Its name on the command line.
        title: What happens.
        begin: Makes it happen.
        end: Undoes it, after `hold_s`; None if it undoes itself.
        hold_s: Seconds from `begin` to `end`.
        short_hold_s: `hold_s` of the short form.
        allowed: Outcomes of the steady callers that are no failure, besides right answers.
        needs_mount: Whether it needs servers with a /dev/shm of their own.
    """

    name: str
    title: str
    begin: Act
    end: Act | None = None
    hold_s: float = 0.0
    short_hold_s: float = 0.0
    allowed: frozenset[str] = frozenset()
    needs_mount: bool = False


def kill_server(stage: Stage, _: Callers) -> None:
    """SIGKILL to tritonserver."""
    stage.servers[0].tritonserver().kill()


def kill_backend(model: str, server: int) -> Act:
    """SIGKILL to the Python process of a model."""
    return lambda stage, _: stage.servers[server].backend(model).kill()


def stop_server(stage: Stage, _: Callers) -> None:
    """SIGSTOP to tritonserver."""
    stage.servers[0].tritonserver().suspend()


def continue_server(stage: Stage, _: Callers) -> None:
    """SIGCONT to tritonserver."""
    stage.servers[0].tritonserver().resume()


def stop_backend(stage: Stage, _: Callers) -> None:
    """SIGSTOP to the process that scores."""
    stage.servers[1].backend("cross_encoder").suspend()


def continue_backend(stage: Stage, _: Callers) -> None:
    """SIGCONT to the process that scores; Triton may have ended it meanwhile."""
    for process in stage.servers[1].processes():
        if process.status() == "stopped":
            process.send_signal(signal.SIGCONT)


def drop(stage: Stage, _: Callers) -> None:
    """Reset the connections of one server and refuse new ones."""
    stage.proxies[0].refusing = True
    stage.proxies[0].reset()


def accept(stage: Stage, _: Callers) -> None:
    """End `drop`."""
    stage.proxies[0].refusing = False


def flap(stage: Stage, _: Callers) -> None:
    """Reset the connections of all servers, three times."""
    for _turn in range(3):
        for proxy in stage.proxies:
            proxy.reset()
        time.sleep(0.5)


def delay(seconds: float) -> Act:
    """Hold the bytes from and to one server."""

    def act(stage: Stage, _: Callers) -> None:
        stage.proxies[1].delay_s = seconds

    return act


def silence(stage: Stage, _: Callers) -> None:
    """Lose the bytes from and to one server, with its connections open."""
    stage.proxies[2].silent = True


def speak(stage: Stage, _: Callers) -> None:
    """End `silence`."""
    stage.proxies[2].speak()


def fill_shm(stage: Stage, callers: Callers) -> None:
    """Take all of one server's /dev/shm, and make calls whose texts do not fit into what Triton has of it."""
    with (stage.shm_of(0) / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"\0" * 4096)
        except OSError:
            pass
    with RerankClient(stage.urls, timeout=TIMEOUT_S) as client:
        for index in range(9):
            callers.call("large", lambda search: logits(client, padded(search)), index)


def padded(search: Search) -> Search:
    """The same tokens in texts of megabytes."""
    return Search(search.query, tuple(document + " " * 300_000 for document in search.documents))


def free_shm(stage: Stage, _: Callers) -> None:
    """End `fill_shm`."""
    (stage.shm_of(0) / "filler").unlink()


def roll(stage: Stage, _: Callers) -> None:
    """Replace one server after the other by one of the next model: start, switch the address, stop."""
    stage.serving = {0, 1}
    for index in range(NUM_SERVERS):
        old, stage.servers[index] = stage.servers[index], stage.start_server(1)
        stage.proxies[index].upstream = stage.servers[index].port
        old.stop()
    stage.serving = {1}


def exhaust_memory(stage: Stage, callers: Callers) -> None:
    """Give one server's backend 4 MB more, and ask it for a row that takes 16 MB, again and again."""
    process = stage.servers[2].backend("cross_encoder")
    limit_memory(process, 4)
    long = " ".join(WORDS[: LONGEST // 2] * 10)
    with RerankClient(stage.urls[2], timeout=10) as client:
        for _turn in range(3):
            try:
                client.rerank(WORDS[0], [long], max_length=LONGEST - 100)
            except RerankError as error:
                if "out of memory on a row" not in str(error):
                    stage.notes.append(f"a row beyond memory: {kind_of(error)}, {error}")
            else:
                stage.notes.append("a row beyond memory was scored")


def restore_memory(stage: Stage, _: Callers) -> None:
    """End `exhaust_memory`."""
    limit_memory(stage.servers[2].backend("cross_encoder"), None)


def flood(stage: Stage, callers: Callers) -> None:
    """Sixty callers at once, without retries, whose calls are far beyond what the servers take."""
    documents = [" ".join(WORDS[number : number + 100]) for number in range(128)]
    end, lock = time.monotonic() + FLOOD_S, threading.Lock()
    seen: dict[str, int] = {}

    def caller(number: int) -> None:
        with RerankClient(stage.urls, max_retries=0, timeout=60) as client:
            while time.monotonic() < end:
                try:
                    client.rerank(WORDS[number], documents)
                    outcome = ""
                except RerankError as error:
                    outcome = kind_of(error)
                with lock:
                    seen[outcome] = seen.get(outcome, 0) + 1

    with ThreadPoolExecutor(FLOOD_CALLERS) as pool:
        list(pool.map(caller, range(FLOOD_CALLERS)))
    if not seen.get("overload"):
        stage.notes.append(f"no call of the flood was refused: {seen}")
    stage.notes += [
        f"{count} calls of the flood: {kind}" for kind, count in seen.items() if kind not in ("", "overload")
    ]


FLOOD_CALLERS, FLOOD_S = 60, 10.0

EVENTS = (
    Event("kill-server", "SIGKILL to one tritonserver", kill_server),
    Event("kill-tokenizer", "SIGKILL to one server's tokenizer", kill_backend("tokenizer", 1)),
    Event("kill-backend", "SIGKILL to the process that scores", kill_backend("cross_encoder", 2)),
    Event("stop-server", "SIGSTOP to one tritonserver for 20 s", stop_server, continue_server, 20, 3),
    Event("stop-backend", "SIGSTOP to the process that scores, for 20 s", stop_backend, continue_backend, 20, 3),
    Event("refuse", "connections to one server are reset for 20 s", drop, accept, 20, 2),
    Event("reset-all", "all connections are reset, three times", flap),
    Event("delay", "bytes to and from one server are 1 s late for 20 s", delay(1.0), delay(0.0), 20, 2),
    Event("half-open", "bytes to and from one server are lost for 20 s", silence, speak, 20, 2),
    Event("full-shm", "/dev/shm of one server is full for 20 s", fill_shm, free_shm, 20, 2, needs_mount=True),
    Event("out-of-memory", "rows that need more memory than one server has", exhaust_memory, restore_memory, 5, 1),
    Event("overload", "sixty callers with large calls for 10 s", flood, allowed=frozenset({"overload"})),
    Event("roll", "all servers change to another checkpoint, one after the other", roll),
)
