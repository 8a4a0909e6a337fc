"""What the fields of dynamic_batching cost and bring: `python loadtest/bench_batcher.py`.

One call of 100 short documents, four requests, finds the time that requests spend waiting beside an idle model; 16
callers of 8 documents find the throughput. Every variant runs on the demo reranker, in turn, `--rounds` times.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from bench import repository_of
from queue_limit import link
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer
from workload import generated

POLICY = "default_queue_policy { max_queue_size: 512 }"
# Name -> (dynamic_batching of the tokenizer, what is merged into that of cross_encoder).
VARIANTS = {
    "shipped": (None, ""),
    "policy_on_tokenizer": (POLICY, ""),
    "delay_1ms_tokenizer": ("max_queue_delay_microseconds: 1000", ""),
    "delay_1ms_cross_encoder": (None, "max_queue_delay_microseconds: 1000"),
    "delay_5ms_cross_encoder": (None, "max_queue_delay_microseconds: 5000"),
}
CALLERS, CALLER_DOCUMENTS = 16, 8
CALLS = 12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="servers started for each variant (default: %(default)s)")
    options = parser.parse_args()
    source = repository_of("demo")
    call_ms: dict[str, list[float]] = {name: [] for name in VARIANTS}
    pairs_per_s: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        for name in VARIANTS:
            print(f"round {number + 1}: {name} ...", file=sys.stderr)
            with tempfile.TemporaryDirectory() as folder, EmbeddedServer(variant(source, Path(folder), name)) as server:
                calls, throughput = measure(server.grpc_url)
            call_ms[name] += calls
            pairs_per_s[name].append(throughput)
    for name, values in call_ms.items():
        print(
            f"{name:24s} a call of 100 short documents: median {statistics.median(values):.0f} ms, worst "
            f"{max(values):.0f} ms; {CALLERS} callers: {statistics.median(pairs_per_s[name]):.0f} pairs/s"
        )
    shipped_ms, shipped = statistics.median(call_ms["shipped"]), statistics.median(pairs_per_s["shipped"])
    print(
        "RESULT",
        *(f"{name}_call={statistics.median(call_ms[name]) / shipped_ms:.2f}" for name in VARIANTS),
        *(f"{name}_throughput={statistics.median(pairs_per_s[name]) / shipped:.2f}" for name in VARIANTS),
    )


def variant(source: Path, target: Path, name: str) -> Path:
    """The repository with other batching; artefacts are links."""
    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
    tokenizer, cross_encoder = VARIANTS[name]
    for path, replaces, fields in (
        (target / "tokenizer/config.pbtxt", True, tokenizer),
        (target / "cross_encoder/configs/cpu.pbtxt", False, cross_encoder),
    ):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        if fields and replaces:
            config.dynamic_batching.Clear()
        text_format.Merge(fields or "", config.dynamic_batching)
        path.unlink()
        path.write_text(text_format.MessageToString(config))
    return target


def measure(url: str) -> tuple[list[float], float]:
    """Milliseconds of each lone call, and pairs/s of many callers."""
    short = [f"document {number} is a short one, of a dozen words or a few more" for number in range(100)]
    search = next(islice(generated(CALLERS * CALLER_DOCUMENTS, seed=1), 1))
    with RerankClient(url) as client, ThreadPoolExecutor(CALLERS) as pool:
        client.rerank("query", short)
        calls = []
        for _ in range(CALLS):
            start = time.perf_counter()
            client.rerank("query", short)
            calls.append(1000 * (time.perf_counter() - start))
        start = time.perf_counter()
        parts = [search.documents[at::CALLERS] for at in range(CALLERS)]
        list(pool.map(lambda documents: client.rerank(search.query, documents), parts * 2))
        return calls, 2 * len(search.documents) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
