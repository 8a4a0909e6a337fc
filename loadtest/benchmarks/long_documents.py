"""Peak memory of the CPU runtime under the longest documents.

Run: `PYTHONPATH=loadtest python -m benchmarks.long_documents REPOSITORY`.
Starts a server and sends two calls: documents that fill the repository's max_length, then one of them among short
documents, whose rows must not be padded to its length. Attention over 8,192 tokens takes a large model half a minute
or more.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import psutil

from load.workload import generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer
from triton_rerank_build.support.progress import format_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path, help="model repository with installed artefacts")
    parser.add_argument(
        "--long", type=int, default=8, help="number of longest documents in a call (default: %(default)s)"
    )
    parser.add_argument(
        "--short", type=int, default=99, help="number of short documents beside one long (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds per call (default: %(default)s)")
    options = parser.parse_args()
    manifest = json.loads((options.repository / "cross_encoder/1/manifest.json").read_text())
    length = manifest["max_length"]
    search = next(generated(options.long + options.short, seed=1))
    # A word has at least one token.
    long_documents = [f"{text} " + "long text " * length for text in search.documents[: options.long]]
    short_documents = list(search.documents[options.long :])
    with (
        EmbeddedServer(options.repository, start_timeout_s=600) as server,
        RerankClient(server.grpc_url, timeout=options.timeout) as client,
    ):
        runtime = cross_encoder_process()
        loaded = peak_bytes(runtime)
        print(f"{manifest['checkpoint']} {manifest['precision']}: loaded and warm, {format_bytes(loaded)}", flush=True)
        alone = call(client, runtime, search.query, long_documents, length)
        beside = call(client, runtime, search.query, [*long_documents[:1], *short_documents], length)
    print(f"RESULT loaded_gb={loaded / 1e9:.2f} long_gb={alone / 1e9:.2f} beside_short_gb={beside / 1e9:.2f}")


def call(client: RerankClient, runtime: psutil.Process, query: str, documents: list[str], max_length: int) -> int:
    """Rerank, print the time, and return the runtime's peak memory during the call in bytes."""
    print(f"{len(documents)} documents ...", file=sys.stderr)
    Path(f"/proc/{runtime.pid}/clear_refs").write_text("5")  # resets the peak, see proc(5)
    started = time.perf_counter()
    response = client.rerank(query, documents, max_length=max_length)
    seconds = time.perf_counter() - started
    lengths = sorted((result.num_tokens for result in response), reverse=True)
    peak = peak_bytes(runtime)
    print(
        f"{len(documents)} documents, {lengths.count(max_length)} of {max_length} tokens, {sum(lengths)} in all: "
        f"{seconds:.0f} s, peak {format_bytes(peak)}",
        flush=True,
    )
    return peak


def cross_encoder_process() -> psutil.Process:
    """The process with the weights."""
    children = psutil.Process().children(recursive=True)
    return max(children, key=lambda process: process.memory_info().rss)


def peak_bytes(process: psutil.Process) -> int:
    """Peak resident memory of a process, including the mapped file of weights."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not report peak memory (VmHWM)")


if __name__ == "__main__":
    main()
