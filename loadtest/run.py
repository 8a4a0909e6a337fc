"""`make loadtest`: a server, Locust without its web page, report.html.

Starts the server of this machine on the model repository, unless --host names one that runs. With --sweep the load is
raised step by step, and the report shows throughput against latency. What follows `--` goes to Locust as it is.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from load.recording import Recording
from load.report import knee, write_report

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write the report, and return Locust's exit status: 1 where a threshold was broken."""
    args = parse(arguments)
    steps = args.sweep or [args.users]
    with server(args) as host, tempfile.TemporaryDirectory() as folder:
        recordings, status = [], 0
        for users in steps:
            file = Path(folder) / f"{users}.json"
            status = max(status, locust(host, users, args, file))
            recordings.append(Recording.load(file))
    write_report(args.report, recordings)
    if len(recordings) > 1:
        best = recordings[knee(recordings)]
        print(f"knee: concurrency {best.options['num_users']}, {best.pairs_per_s():.1f} pairs/s")
    print(f"report: {args.report}")
    return status


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", help="host:port of a running server (default: start one here)")
    parser.add_argument("--repository", type=Path, default=HERE.parent / "model_repository", help="for a server here")
    parser.add_argument("--users", type=int, default=8, help="calls under way at once (default: %(default)s)")
    parser.add_argument("--sweep", type=counts, metavar="1,2,4,...", help="concurrencies to go through")
    parser.add_argument("--seconds", type=int, default=60, help="of each run (default: %(default)s)")
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("locust", nargs="*", metavar="-- LOCUST OPTION", help="such as -- --tags chat --rate 5")
    return parser.parse_args(arguments)


def counts(text: str) -> list[int]:
    """Whole numbers from 1 on, ascending."""
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError("concurrencies start at 1")
    return numbers


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[str]:
    """Address of the server to load."""
    if args.host:
        yield args.host
        return
    from triton_rerank_build import EmbeddedServer

    print(f"starting tritonserver on {args.repository} ...", flush=True)
    with EmbeddedServer(args.repository) as running:
        yield running.grpc_url


def locust(host: str, users: int, args: argparse.Namespace, recording: Path) -> int:
    """One run in a process of its own: Locust patches Python's sockets and threads."""
    command = [
        *(sys.executable, "-m", "locust", f"--locustfile={HERE / 'locustfile.py'}", f"--host={host}"),
        *("--headless", "--only-summary", "--loglevel=WARNING", "--reset-stats"),
        *(f"--users={users}", f"--spawn-rate={users}", f"--run-time={args.seconds}s", "--stop-timeout=60s"),
        f"--recording={recording}",
        *args.locust,
    ]
    print(f"{users} callers, {args.seconds} s ...", flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
