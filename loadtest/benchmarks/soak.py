"""Memory, descriptors and threads of every process under an hour of load: `python -m benchmarks.soak --out FOLDER`.

One server holds the demo reranker and demo-late, and a gateway stands before it (PYTHONPATH=loadtest). The client calls
both models and HTTP callers the gateway, in turn, with one to many documents; their lengths are uniform up to the limit
of 512 tokens. Every ten seconds the script samples the gateway, tritonserver, each model's process and the server's
files in /dev/shm into FOLDER/soak.json; at the end it draws FOLDER/soak.svg. The cache of document vectors is small
here, so that it is full within the first minutes and its growth hides nothing.

The run ends early if the server does. A figure counts as flat if its median in the last quarter of the run is not above
that in the second by more than 5 % and by more than 10 MB of memory, 4 descriptors or 4 threads. The exit status is 1
if one grows or a call fails. Calls that are refused as overload are counted apart.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
from tritonclient.grpc import model_config_pb2

from benchmarks.late_interaction import repository
from benchmarks.variants import variant
from load.http import GatewayClient
from load.plots import PLOT_STYLE, legend
from load.programs import Gateway, processes_of
from load.workload import Search, generated, uniform_tokens
from triton_rerank import RerankClient, RerankError, ServerOverloadedError
from triton_rerank_build import EmbeddedServer

MODELS = ("reranker", "late_interaction")
CALLERS = 8
TIMEOUT_S = 300.0
SHARED_MEMORY = "/dev/shm"
LEAST_GROWTH = {"memory_mb": 10, "descriptors": 4, "threads": 4}
TITLES = {"memory_mb": "MB", "descriptors": "open descriptors", "threads": "threads"}
Sample = dict[str, float | dict[str, float]]
Caller = RerankClient | GatewayClient


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, draw, print, and return the exit status: 1 if something grows or a call failed."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        small = variant(repository(), Path(folder), {"late_scorer/config.pbtxt": with_cache(options.cache_mb)})
        with (
            EmbeddedServer(small, restart=False) as server,
            ExitStack() as clients,
        ):
            gateway = Gateway([server.grpc_url], "--timeout", str(TIMEOUT_S), "--max-retries", "10")
            clients.callback(gateway.stop)
            callers = [GatewayClient(gateway.url, timeout=TIMEOUT_S, connections=CALLERS)]
            for model in MODELS:
                callers.append(clients.enter_context(RerankClient(server.grpc_url, model, timeout=TIMEOUT_S)))
            samples, outcomes = soak(server, gateway, callers, options)
        if server.reason:
            print(f"the server ended by itself: {server.reason}", file=sys.stderr)
    (options.out / "soak.json").write_text(json.dumps({"calls": outcomes, "samples": samples}))
    draw(samples, options.out / "soak.svg")
    more = []
    for figure in LEAST_GROWTH:
        for name in samples[0][figure]:
            before, after = growth(samples, figure, name)
            print(f"{name:16} {TITLES[figure]:17} {before:7.0f} in the second quarter, {after:7.0f} in the last")
            if grown(figure, before, after):
                more.append(f"{name}:{figure}")
    print(
        f"RESULT minutes={samples[-1]['at_s'] / 60:.0f} answered={outcomes['answered']} refused={outcomes['refused']} "
        f"failed={outcomes['failed']} grown={','.join(more) or 'none'}"
    )
    return 1 if more or outcomes["failed"] or server.reason else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of soak.json and soak.svg")
    parser.add_argument("--minutes", type=float, default=60.0, help="duration (default: %(default)g)")
    parser.add_argument("--calls-per-s", type=float, default=2.0, help="calls started per second (default: 2)")
    parser.add_argument(
        "--documents", type=int, default=32, help="documents of the largest call (default: %(default)s)"
    )
    parser.add_argument("--every-s", type=float, default=10.0, help="seconds between samples (default: %(default)g)")
    parser.add_argument("--cache-mb", type=int, default=16, help="cache of document vectors (default: %(default)s)")
    return parser.parse_args(arguments)


def with_cache(megabytes: int) -> Callable[[model_config_pb2.ModelConfig], None]:
    """A change of late_scorer's config: another size of its cache."""

    def change(config: model_config_pb2.ModelConfig) -> None:
        config.parameters["cache_bytes"].string_value = str(megabytes << 20)

    return change


def soak(
    server: EmbeddedServer, gateway: Gateway, callers: Sequence[Caller], options: argparse.Namespace
) -> tuple[list[Sample], Counter[str]]:
    """Call at a steady rate, and sample; the samples, and the number of calls that were answered, refused and failed.

    A machine that is too slow for the rate gets the next call when one of CALLERS is free.
    """
    start, lock, ended = time.monotonic(), threading.Lock(), Counter(answered=0, refused=0, failed=0)
    free = threading.Semaphore(CALLERS)

    def call(caller: Caller, search: Search) -> None:
        try:
            caller.rerank(search.query, search.documents)
        except RerankError as error:
            outcome = "refused" if isinstance(error, ServerOverloadedError) else "failed"
            print(f"{outcome}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        else:
            outcome = "answered"
        with lock:
            ended[outcome] += 1
        free.release()

    def sample() -> Sample:
        return {"at_s": time.monotonic() - start, "calls": float(ended.total())} | measured(server, gateway)

    samples: list[Sample] = []
    todo = zip(cycle(callers), sizes_of(options.documents), strict=False)
    with ThreadPoolExecutor(CALLERS) as pool:
        while server.running and (now := time.monotonic() - start) < 60 * options.minutes:
            if now >= options.every_s * len(samples):
                samples.append(sample())
            if free.acquire(timeout=1 / options.calls_per_s):
                pool.submit(call, *next(todo))
                time.sleep(1 / options.calls_per_s)
    if server.running:
        samples.append(sample())
    return samples, ended


def sizes_of(most: int) -> Iterator[Search]:
    """Endless searches of 1 to `most` documents, small ones more often; the same in every run."""
    searches = {size: generated(size, "soak", uniform_tokens) for size in range(1, most + 1)}
    chance = random.Random(0)
    while True:
        yield next(searches[int(most ** chance.random())])


def measured(server: EmbeddedServer, gateway: Gateway) -> dict[str, dict[str, float]]:
    """Figures of each process, and the size of the server's files in /dev/shm.

    Memory is anonymous memory. Pages of the weights' file are left out: the kernel drops and reads them as it likes,
    which would hide a leak.
    """
    processes = {"gateway": gateway.processes()[0]} | processes_of(server)
    prefix = next(word for word in processes["tritonserver"].cmdline() if "shm-region-prefix-name=" in word).rpartition(
        "="
    )[2]
    files = Path(SHARED_MEMORY).glob(f"{prefix}*")
    shared = sum(file.stat().st_blocks for file in files) * 512 / 1e6
    return {
        "memory_mb": {name: anonymous_mb(process) for name, process in processes.items()} | {SHARED_MEMORY: shared},
        "descriptors": {name: float(process.num_fds()) for name, process in processes.items()},
        "threads": {name: float(process.num_threads()) for name, process in processes.items()},
    }


def anonymous_mb(process: psutil.Process) -> float:
    """RssAnon of proc(5)."""
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 1e6


def grown(figure: str, before: float, after: float) -> bool:
    """Whether one median is above the other by more than 5 % and more than LEAST_GROWTH."""
    return after > max(1.05 * before, before + LEAST_GROWTH[figure])


def growth(samples: Sequence[Sample], figure: str, name: str) -> tuple[float, float]:
    """Medians in the second and in the last quarter of the run."""
    quarter = max(1, len(samples) // 4)
    parts = (samples[quarter : 2 * quarter] or samples), samples[-quarter:]
    before, after = (statistics.median(sample[figure][name] for sample in part) for part in parts)
    return before, after


def draw(samples: Sequence[Sample], path: Path) -> None:
    """A panel for each figure, a curve for each process."""
    minutes = [sample["at_s"] / 60 for sample in samples]
    with plt.rc_context(PLOT_STYLE):
        figure, panels = plt.subplots(len(TITLES), figsize=(9, 9), sharex=True, layout="constrained")
        for (key, title), axes in zip(TITLES.items(), panels, strict=True):
            for name in samples[0][key]:
                axes.plot(minutes, [sample[key][name] for sample in samples], label=name)
            axes.set(ylabel=title, ylim=(0, None))
        legend(panels[0])
        panels[0].set_title("One server and its gateway under steady load")
        panels[-1].set_xlabel("minutes")
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
