"""Bulk jobs on two servers against one: `PYTHONPATH=loadtest python -m benchmarks.bulk`.

Each job is `triton-rerank bulk` in a process of its own, over the same rows. The servers of a pair of jobs are

- paced: stand-ins that speak Triton's protocol, take one request after another, and sleep for as long as its pairs take
  at `--pace` pairs/s. They need no processor, as servers on GPUs of other machines need none of this one. This shows
  what a job makes of a second server, not what a server does.
- real: the demo reranker, twice on this machine. Two servers share its cores, so a second one can bring nothing.

`free` is the pairs/s of a job on a stand-in that answers at once: the limit of one process, with the server's share of
the same cores. `start` is the seconds of a job of one row, in one process and on a new Ray cluster of this machine.
Each ratio is the median over rounds, whose jobs alternate.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from load.workload import generated
from triton_rerank_build import EmbeddedServer, export
from triton_rerank_build.support.files import cache_folder

DOCUMENTS = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--rows", type=int, default=400, metavar="N", help="of a paced job (%(default)s)")
    parser.add_argument("--real-rows", type=int, default=60, metavar="N", help="of a real one; 0: none (%(default)s)")
    parser.add_argument("--pace", type=float, default=500.0, metavar="PAIRS_PER_S", help="(%(default)g)")
    parser.add_argument("--no-ray", action="store_true", help="leave out the start of Ray")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with standing_in(options.pace) as first, standing_in(options.pace) as second:
            paced = pairs(folder, write(folder, options.rows), [first, second], options.rounds)
        with standing_in(0) as free:
            speeds = [
                job(folder, write(folder, 4 * options.rows), [free])["pairs_per_s"] for _ in range(options.rounds)
            ]
            figures |= {"two_over_one_paced": ratio(paced), "free_pairs_per_s": statistics.median(speeds)}
            figures["start_s"] = seconds(folder, free)
            if not options.no_ray:
                figures["ray_start_s"] = seconds(folder, free, "--ray-address", "local", "--workers", "1")
        if options.real_rows:
            with ExitStack() as stack:
                servers = [stack.enter_context(EmbeddedServer(repository())) for _ in range(2)]
                urls = [server.grpc_url for server in servers]
                rows = write(folder, options.real_rows)
                pairs(folder, rows, urls, 1)  # OpenVINO compiles kernels once per shape
                real = pairs(folder, rows, urls, options.rounds)
                figures["two_over_one_real"] = ratio(real)
                report("real", real)
    report("paced", paced)
    print(f"RESULT {' '.join(f'{name}={value:.2f}' for name, value in figures.items())}")


def repository() -> Path:
    """A repository with the demo reranker, in the cache folder."""
    folder = cache_folder() / "bench-bulk"
    export("demo", repository=folder)
    return folder


@contextmanager
def standing_in(pace: float) -> Iterator[str]:
    """The address of a stand-in for a server, in a process of its own.

    Args:
        pace: Pairs/s; 0 to answer at once.
    """
    code = f"from benchmarks.client import serve; serve({f'{pace:g}' if pace else ''})"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


def write(folder: Path, rows: int) -> Path:
    """A Parquet file of searches with the lengths of web passages; the same in every run."""
    path = folder / f"{rows}.parquet"
    found = islice(generated(DOCUMENTS, seed="bulk"), rows)
    searches = [{"query": search.query, "candidates": list(search.documents)} for search in found]
    pq.write_table(pa.Table.from_pylist(searches), path)
    return path


def job(folder: Path, rows: Path, urls: Sequence[str], *options: str) -> dict:
    """Run a job; its summary."""
    out = folder / f"out-{time.monotonic_ns()}"
    code = "import sys; from triton_rerank.cli.main import main; sys.exit(main())"
    addresses = [word for url in urls for word in ("--url", url)]
    command = [sys.executable, "-c", code, "bulk", str(rows), str(out), "--json", "--concurrency", "16", *addresses]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    return json.loads(done.stdout)


def pairs(folder: Path, rows: Path, urls: Sequence[str], rounds: int) -> list[tuple[float, float]]:
    """Pairs/s on one server and on two, for each round."""
    found = []
    for number in range(rounds):
        one = job(folder, rows, urls[number % 2 :][:1])["pairs_per_s"]
        found.append((one, job(folder, rows, urls)["pairs_per_s"]))
        print(f"one server {found[-1][0]:,.0f} pairs/s, two {found[-1][1]:,.0f}", file=sys.stderr)
    return found


def seconds(folder: Path, url: str, *options: str) -> float:
    """Seconds of a job of one row."""
    rows, start = write(folder, 1), time.monotonic()
    job(folder, rows, [url], *options)
    return time.monotonic() - start


def ratio(found: Sequence[tuple[float, float]]) -> float:
    """Two servers by one: the median over the rounds."""
    return statistics.median(two / one for one, two in found)


def report(kind: str, found: Sequence[tuple[float, float]]) -> None:
    """Print the medians."""
    one, two = (statistics.median(speeds) for speeds in zip(*found, strict=True))
    print(f"{kind}: one server {one:,.1f} pairs/s, two {two:,.1f}, ratio {ratio(found):.2f}")


if __name__ == "__main__":
    main()
