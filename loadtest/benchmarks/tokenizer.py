"""Tokens per second through the served tokenizer, against `encode_batch_fast` alone on the same cores.

Run: `PYTHONPATH=loadtest python -m benchmarks.tokenizer`. The server's processes, or the process that encodes alone,
get `--cores` cores; the callers, who send requests of 100 documents to the model `tokenizer`, run on all of them, so
leave one to them. Both alternate, `--rounds` times. Tokens per second of processor time, of Triton and the tokenizer's
process against the encoder's, hardly depend on what else runs on the machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import psutil
from tritonclient.grpc import model_config_pb2

from benchmarks.bench import repository_of
from benchmarks.variants import TOKENIZER, variant
from load.workload import Search, generated
from triton_rerank.ranking.batching import Part
from triton_rerank.transport import messages
from triton_rerank_build import EmbeddedServer

DOCUMENTS, SEARCHES = 100, 16
CALLERS = 4
SECONDS = 4.0


def main() -> None:
    """Measure and print."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, nargs="+", default=sorted({1, cores}), help="default: 1, and all")
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2], help="default: 1 and 2")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (default: %(default)s)")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(*encode_alone(options.alone))
        return
    repository = repository_of("demo")
    results = []
    for number in options.cores:
        chosen = sorted(os.sched_getaffinity(0))[:number]
        for instances in options.instances:
            served, alone = compare(repository, chosen, instances, options.rounds)
            print(
                f"{number} cores, {instances} instances: M tokens/s served {served.wall / 1e6:.3f}, alone "
                f"{alone.wall / 1e6:.3f}; of processor time {served.cpu / 1e6:.3f} and {alone.cpu / 1e6:.3f}",
                file=sys.stderr,
                flush=True,
            )
            name = f"{number}_cores_{instances}_instances"
            results.append(f"ratio_{name}={served.wall / alone.wall:.2f} cpu_ratio_{name}={served.cpu / alone.cpu:.2f}")
            results.append(f"tokens_per_s_{name}={served.wall:.0f}")
    print("RESULT", *results)


def workload() -> list[Search]:
    """The same searches in every process."""
    return list(islice(generated(DOCUMENTS, seed=3), SEARCHES))


class Speed(NamedTuple):
    """Documents or tokens per second, and per second of processor time."""

    wall: float
    cpu: float


def compare(repository: Path, cores: Sequence[int], instances: int, rounds: int) -> tuple[Speed, Speed]:
    """Median speed of the served tokenizer, and of `encode_batch_fast` alone, on these cores, in tokens."""

    def change(config: model_config_pb2.ModelConfig) -> None:
        config.instance_group[0].count = instances

    mine = os.sched_getaffinity(0)
    served, alone = [], []
    command = [sys.executable, "-m", "benchmarks.tokenizer", "--alone", repository / "tokenizer/1/tokenizer.json"]
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(variant(repository, Path(folder), {TOKENIZER: change}))
        os.sched_setaffinity(0, cores)  # which the processes of the server inherit
        with server:
            os.sched_setaffinity(0, mine)
            processes = working(server)
            call(server.grpc_url, 1.0, processes)
            for _ in range(rounds):
                taskset = ["taskset", "--cpu-list", ",".join(map(str, cores))]
                done = subprocess.run([*taskset, *command], capture_output=True, text=True, check=True)
                *speed, tokens = map(float, done.stdout.split())
                alone.append(Speed(*speed))
                served.append(call(server.grpc_url, SECONDS, processes))

    def median(speeds: Sequence[Speed]) -> Speed:
        return Speed(*(tokens * statistics.median(each) for each in zip(*speeds, strict=True)))

    return median(served), median(alone)


def working(server: EmbeddedServer) -> list[psutil.Process]:
    """The processes of the server that tokenizing occupies: tritonserver's, and those of the model `tokenizer`."""
    names = (f"--grpc-port={server.grpc_url.rpartition(':')[2]}", "tokenizer/1/model.py")
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if any(name in part for part in process.cmdline() for name in names)]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Seconds of processor time so far."""
    return sum(process.cpu_times().user + process.cpu_times().system for process in processes)


def encode_alone(tokenizer_file: Path) -> tuple[float, float, float]:
    """Documents per second of `encode_batch_fast`, one batch after another, by both clocks; tokens of a document."""
    from tokenizers import Tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batches = [list(search.documents) for search in workload()]
    tokens = sum(
        len(encoding) for batch in batches for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    )
    start, own = time.perf_counter(), time.process_time()
    for turn in count(1):
        tokenizer.encode_batch_fast(batches[turn % SEARCHES], add_special_tokens=False)
        if (seconds := time.perf_counter() - start) > SECONDS:
            break
    documents = turn * DOCUMENTS
    return documents / seconds, documents / (time.process_time() - own), tokens / SEARCHES / DOCUMENTS


def call(url: str, seconds: float, processes: Sequence[psutil.Process]) -> Speed:
    """Documents per second of CALLERS callers of the model `tokenizer`, which occupy `processes`."""
    requests = [request_of(search) for search in workload()]
    channel, stub = messages.stub(url, None, None)
    start, before_s = time.perf_counter(), cpu_s(processes)

    def caller(number: int) -> int:
        for turn in count():
            if time.perf_counter() > start + seconds:
                break
            stub.ModelInfer(requests[(number + turn) % SEARCHES])
        return turn * DOCUMENTS

    with ThreadPoolExecutor(CALLERS) as pool:
        answered = sum(pool.map(caller, range(CALLERS)))
    channel.close()
    return Speed(answered / (time.perf_counter() - start), answered / (cpu_s(processes) - before_s))


def request_of(search: Search) -> object:
    """A request for the token counts of a search."""
    documents = [document.encode() for document in search.documents]
    part = Part(tuple(range(len(documents))), search.query.encode(), documents)
    request = messages.infer_request("tokenizer", part, {}).message
    del request.outputs[:]
    request.outputs.add(name="num_tokens")
    return request


if __name__ == "__main__":
    main()
