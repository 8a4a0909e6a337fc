"""Memory of a server over an hour of modest load: `PYTHONPATH=loadtest python -m benchmarks.memory --out FOLDER`.

One server holds the demo reranker and demo-late, and answers calls to both in turn, of few to many documents of the
lengths of web passages. Every ten seconds the script samples the memory of tritonserver and of each model's process,
and what the server holds in /dev/shm, into FOLDER/memory.json; at the end it draws FOLDER/memory.svg. The cache of
document vectors is small here, so that it is full within the first minutes and its growth hides nothing.

The run ends early if the server does. The memory counts as flat if no process and no shared memory is larger in the
last quarter of the run than in the second by more than 5 % and 10 MB (medians). The exit status is 1 if one is.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
from tritonclient.grpc import model_config_pb2

from benchmarks.late_interaction import repository
from benchmarks.variants import variant
from load.plots import PLOT_STYLE, legend
from load.workload import Search, generated
from triton_rerank import RerankClient, RerankError
from triton_rerank_build import EmbeddedServer

MODELS = ("reranker", "late_interaction")
CALLERS = 8
SHARED_MEMORY = "/dev/shm"
Sample = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, draw, print, and return the exit status: 1 if memory grows."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        small = variant(repository(), Path(folder), {"late_scorer/config.pbtxt": with_cache(options.cache_mb)})
        with EmbeddedServer(small, restart=False) as server:
            samples, failed = soak(server, options)
        if server.reason:
            print(f"the server ended by itself: {server.reason}", file=sys.stderr)
    (options.out / "memory.json").write_text(json.dumps({"failed_calls": failed, "samples": samples}))
    draw(samples, options.out / "memory.svg")
    growth = {name: growth_mb(samples, name) for name in measured(samples)}
    for name, (before, after) in growth.items():
        print(f"{name:16} {before:7.0f} MB in the second quarter, {after:7.0f} MB in the last")
    more = sorted(name for name, sizes in growth.items() if grown(*sizes))
    shown = " ".join(f"{name}_mb={before:.0f}:{after:.0f}" for name, (before, after) in growth.items())
    print(f"RESULT calls={samples[-1]['calls']:.0f} failed={failed} grown={','.join(more) or 'none'} {shown}")
    return 1 if more or failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of memory.json and memory.svg")
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


def soak(server: EmbeddedServer, options: argparse.Namespace) -> tuple[list[Sample], int]:
    """Call the server at a steady rate and sample its memory; the samples, and the number of failed calls.

    A machine that is too slow for the rate gets the next call when one of CALLERS is free.
    """
    start, lock, ended = time.monotonic(), threading.Lock(), []
    free = threading.Semaphore(CALLERS)
    clients = {model: RerankClient(server.grpc_url, model, timeout=300.0) for model in MODELS}

    def call(model: str, search: Search) -> None:
        try:
            clients[model].rerank(search.query, search.documents)
        except RerankError as error:
            print(f"{model}: {error}", file=sys.stderr, flush=True)
            outcome = False
        else:
            outcome = True
        with lock:
            ended.append(outcome)
        free.release()

    samples: list[Sample] = []
    todo = zip(cycle(MODELS), sizes_of(options.documents), strict=False)
    with ThreadPoolExecutor(CALLERS) as pool:
        while server.running and (now := time.monotonic() - start) < 60 * options.minutes:
            if now >= options.every_s * len(samples):
                samples.append({"at_s": now, "calls": float(len(ended))} | memory_mb(server))
            if free.acquire(timeout=1 / options.calls_per_s):
                pool.submit(call, *next(todo))
                time.sleep(1 / options.calls_per_s)
    if server.running:
        samples.append({"at_s": time.monotonic() - start, "calls": float(len(ended))} | memory_mb(server))
    for client in clients.values():
        client.close()
    return samples, ended.count(False)


def sizes_of(most: int) -> Iterator[Search]:
    """Endless searches of 1 to `most` documents, small ones more often; the same in every run."""
    chance, searches = random.Random(0), {size: generated(size, seed="memory") for size in range(1, most + 1)}
    while True:
        yield from islice(searches[int(most ** chance.random())], 1)


def memory_mb(server: EmbeddedServer) -> Sample:
    """Anonymous memory of each process, and the server's files in /dev/shm, in MB.

    Pages of the weights' file are left out: the kernel drops and reads them as it likes, which would hide a leak.
    """
    port = server.grpc_url.rsplit(":", 1)[1]
    started = [(process, process.cmdline() or [""]) for process in psutil.Process().children(recursive=True)]
    triton = next(process for process, words in started if _runs_server(words, port))
    sizes = {"tritonserver": anonymous_mb(triton)}
    for process in triton.children(recursive=True):
        name = next((word for word in process.cmdline() if word.endswith("_0_0")), None)
        if name:
            sizes[name.removesuffix("_0_0")] = anonymous_mb(process)
    prefix = next(word for word in triton.cmdline() if "shm-region-prefix-name=" in word).rpartition("=")[2]
    files = Path(SHARED_MEMORY).glob(f"{prefix}*")
    return sizes | {SHARED_MEMORY: sum(file.stat().st_blocks for file in files) * 512 / 1e6}


def anonymous_mb(process: psutil.Process) -> float:
    """RssAnon of proc(5)."""
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 1e6


def _runs_server(words: Sequence[str], port: str) -> bool:
    return words[0].endswith("/tritonserver") and f"--grpc-port={port}" in words


def measured(samples: Sequence[Sample]) -> list[str]:
    """Names of the processes, and of the shared memory."""
    return [name for name in samples[0] if name not in ("at_s", "calls")]


def grown(before_mb: float, after_mb: float) -> bool:
    """Whether one median is more than 5 % and more than 10 MB above the other."""
    return after_mb > max(1.05 * before_mb, before_mb + 10)


def growth_mb(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """Medians in the second and in the last quarter of the run."""
    quarter = max(1, len(samples) // 4)
    parts = (samples[quarter : 2 * quarter] or samples), samples[-quarter:]
    before, after = (statistics.median(sample[name] for sample in part) for part in parts)
    return before, after


def draw(samples: Sequence[Sample], path: Path) -> None:
    """One curve for each process."""
    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
        minutes = [sample["at_s"] / 60 for sample in samples]
        for name in measured(samples):
            axes.plot(minutes, [sample[name] for sample in samples], label=name)
        axes.set(title="Memory under steady load", xlabel="minutes", ylabel="MB", ylim=(0, None))
        legend(axes)
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
