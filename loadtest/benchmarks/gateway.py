"""What HTTP adds to a call: `PYTHONPATH=loadtest python -m benchmarks.gateway`. Needs no Triton.

The server of `benchmarks.client` answers at once with zeros, in a process of its own. Calls of 100 documents of 1 kB go
to it in turns: from `AsyncRerankClient` in this process, and over HTTP through `triton-rerank gateway` in another.

added CPU: CPU time per call of the gateway's process, less that of the client's calls in this process, with 8 callers.
calls per second: calls of 8 callers per second of the gateway's CPU time, which is what one core serves.
added p99: of one caller, whose calls alternate between the two ways; the median of the turns, since other programs on
the machine delay calls of either way.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import psutil

from benchmarks.client import QUERY, documents_of
from load.programs import Gateway
from triton_rerank import AsyncRerankClient

Call = Callable[[], Awaitable[object]]
CALLERS = 8


class HttpCaller:
    """One kept connection, with as little work of its own as possible."""

    def __init__(self, port: int, documents: list[str]) -> None:
        body = json.dumps({"query": QUERY, "documents": documents}).encode()
        head = f"POST /v1/rerank HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n"
        self._port = port
        self._request = head.encode() + body

    async def __aenter__(self) -> "HttpCaller":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def call(self) -> bytes:
        """Send the request and read the answer.

        Raises:
            SystemExit: The answer is not a ranking.
        """
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        body = await self._reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        if not head.startswith(b"HTTP/1.1 200 "):
            sys.exit(f"the gateway answered {head.splitlines()[0]!r}: {body[:300]!r}")
        return body


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100, help="of a call (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of both ways (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=400, help="in a turn (default: %(default)s)")
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.client", "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    url = server.stdout.readline().strip()
    gateway = Gateway([url])
    try:
        asyncio.run(measure(url, gateway, options))
    finally:
        gateway.stop()
        server.stdin.close()
        server.wait()


async def measure(url: str, gateway: Gateway, options: argparse.Namespace) -> None:
    """Alternate between the two ways, and print the differences."""
    documents, process = documents_of(options.documents), gateway.processes()[0]
    callers = [HttpCaller(gateway.port, documents) for _ in range(CALLERS)]
    async with AsyncRerankClient(url) as client:
        for caller in callers:
            await caller.__aenter__()

        async def direct() -> object:
            return await client.rerank(QUERY, documents)

        await check_equal(await callers[0].call(), client, documents)
        own = psutil.Process()
        cpu: dict[str, list[float]] = {"gateway": [], "client": []}
        for _ in range(options.rounds):
            cpu["gateway"].append(await cpu_ms(process, [caller.call for caller in callers], options.calls))
            cpu["client"].append(await cpu_ms(own, [direct] * CALLERS, options.calls))
        turns = [await latencies(callers[0].call, direct, options.calls) for _ in range(options.rounds)]
        for caller in callers:
            await caller.__aexit__()
    through, alone = (statistics.median(cpu[name]) for name in ("gateway", "client"))
    print(f"{options.documents} documents of 1 kB, medians of {options.rounds} turns of {options.calls} calls")
    print(f"CPU a call: gateway {through:.2f} ms, client alone {alone:.2f} ms")
    added = {}
    for q in (50, 99):
        both = [(percentile(gateway, q), percentile(client, q)) for gateway, client in turns]
        added[q] = statistics.median(gateway - client for gateway, client in both)
        ways = [statistics.median(way) for way in zip(*both, strict=True)]
        print(f"one caller, p{q}: gateway {ways[0]:.2f} ms, client alone {ways[1]:.2f} ms, added {added[q]:.2f} ms")
    print(
        f"RESULT added_cpu_ms_{options.documents}={through - alone:.2f} calls_per_s={1e3 / through:.0f} "
        f"p50_added_ms={added[50]:.2f} p99_added_ms={added[99]:.2f}"
    )


async def check_equal(answer: bytes, client: AsyncRerankClient, documents: list[str]) -> None:
    """Refuse to measure a gateway whose scores are not the client's."""
    wanted = [(result.index, result.relevance_score) for result in await client.rerank(QUERY, documents)]
    if [(result["index"], result["relevance_score"]) for result in json.loads(answer)["results"]] != wanted:
        sys.exit("the gateway's scores are not those of the client")


async def cpu_ms(process: psutil.Process, calls: list[Call], count: int) -> float:
    """CPU milliseconds of `process` per call, with one call of each of `calls` in flight."""
    left = count

    async def caller(call: Call) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    before = process.cpu_times()
    await asyncio.gather(*(caller(call) for call in calls))
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / count * 1e3


async def latencies(first: Call, second: Call, count: int) -> tuple[list[float], list[float]]:
    """Wall milliseconds of `count` calls of each way, which alternate."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for call, times in zip((first, second), found, strict=True):
            started = time.perf_counter()
            await call()
            times.append((time.perf_counter() - started) * 1e3)
    return found


def percentile(values: list[float], percent: int) -> float:
    """A percentile."""
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()
