"""`make loadtest`: run Locust without its web page against a server, and write report.html.

Starts a server on this machine for the model repository, unless --host names a running one. With --sweep the load rises
step by step, and the report shows throughput against latency. Arguments after `--` go to Locust.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from load.recording import Recording
from load.report import knee, write_report
from triton_rerank import RerankClient, RerankError, ServerOverloadedError
from triton_rerank_build import BuildError, EmbeddedServer

HERE = Path(__file__).parent
READY_TIMEOUT_S = 30.0  # for one pair; a loaded server may need seconds


class LoadTestError(Exception):
    """The load test can't start or has no result; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write the report, and return Locust's exit status: 1 if a threshold was exceeded.

    The report of an earlier run stays as it is if this run has no result.
    """
    args = parse(arguments)
    try:
        with server(args) as host, tempfile.TemporaryDirectory() as folder:
            recordings, status = steps(host, args, Path(folder))
    except (LoadTestError, BuildError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    write_report(args.report, recordings)
    if len(recordings) > 1:
        best = knee(recordings)
        if best is None:
            print("no knee: no call was answered")
        else:
            run = recordings[best]
            print(f"knee: concurrency {run.options['num_users']}, {run.pairs_per_s():.1f} pairs/s")
    print(f"report: {args.report}")
    return status


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", help="host:port of a running server's gRPC port (default: start a server)")
    parser.add_argument(
        "--repository",
        type=Path,
        default=HERE.parent / "model_repository",
        help="model repository of a server that is started (default: model_repository)",
    )
    parser.add_argument("--users", type=int, default=8, help="concurrent callers (default: %(default)s)")
    parser.add_argument("--sweep", type=counts, metavar="1,2,4,...", help="numbers of callers, one run for each")
    parser.add_argument("--seconds", type=int, default=60, help="length of a run (default: %(default)s)")
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("locust", nargs="*", metavar="-- LOCUST OPTION", help="for example -- --tags chat --rate 5")
    return parser.parse_args(arguments)


def counts(text: str) -> list[int]:
    """Parse numbers of callers; return them ascending."""
    numbers = sorted({int(part) for part in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError("concurrencies start at 1")
    return numbers


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[str]:
    """Address of the server under load.

    Raises:
        LoadTestError: The server that --host names does not answer.
        BuildError: The server of this machine does not start.
    """
    if args.host:
        check_host(args.host)
        yield args.host
        return
    print(f"starting tritonserver on {args.repository} ...", flush=True)
    with EmbeddedServer(args.repository) as running:
        yield running.grpc_url


def check_host(host: str) -> None:
    """Score one pair, so that a wrong address ends here and not in thousands of failed calls.

    Raises:
        LoadTestError: `host` is not an address, or no reranker answers there.
    """
    if "//" in host.removeprefix("dns:///") or not re.search(r":\d+$", host):
        raise LoadTestError(f"--host {host} is not host:port of Triton's gRPC port, such as gpu-server:8001")
    try:
        with RerankClient(host, timeout=READY_TIMEOUT_S) as client:
            client.rerank("ready?", ["One pair."])
    except ServerOverloadedError:
        pass  # the server works
    except RerankError as error:
        raise LoadTestError(f"--host {host}: {error}") from error


def steps(host: str, args: argparse.Namespace, folder: Path) -> tuple[list[Recording], int]:
    """Run each step of the load; return the recordings and the first exit status that is not 0.

    Raises:
        LoadTestError: A run wrote no recording.
    """
    recordings, status = [], 0
    for users in args.sweep or [args.users]:
        file = folder / f"{users}.json"
        code = locust(host, users, args, file)
        status = status or code
        if not file.exists():
            raise LoadTestError(f"Locust ended with status {code} and recorded nothing; its message is above")
        recordings.append(Recording.load(file))
    return recordings, status


def locust(host: str, users: int, args: argparse.Namespace, recording: Path) -> int:
    """Run Locust in a process of its own, since it patches Python's sockets and threads."""
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
