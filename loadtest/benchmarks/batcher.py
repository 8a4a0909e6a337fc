"""Cost and benefit of the fields of dynamic_batching: `PYTHONPATH=loadtest python -m benchmarks.batcher`.

A call of 100 short documents in four requests measures how long requests wait while the model is idle: a gap is missed
where a request waited for 0.3 s or more in the queue of a model. 16 callers of 8 documents measure the throughput. The
variants alternate on the demo reranker, `--rounds` times.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.bench import repository_of
from benchmarks.variants import CROSS_ENCODER, TOKENIZER, variant
from load.triton_statistics import totals
from load.workload import generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

POLICY = "default_queue_policy { max_queue_size: 512 }"
MODELS = ("tokenizer", "cross_encoder")
MISSED_S = 0.3  # a batcher that missed the end of an execution sleeps for 0.5 s
# Name -> (dynamic_batching of tokenizer, text merged into dynamic_batching of cross_encoder).
VARIANTS = {
    "shipped": (None, ""),
    "policy_on_tokenizer": (POLICY, ""),
    "policy_on_cross_encoder": (None, POLICY),
    "delay_1ms_tokenizer": ("max_queue_delay_microseconds: 1000", ""),
    "delay_1ms_cross_encoder": (None, "max_queue_delay_microseconds: 1000"),
    "delay_5ms_cross_encoder": (None, "max_queue_delay_microseconds: 5000"),
}
CALLERS, CALLER_DOCUMENTS = 16, 8
CALLS, PAIRS_PER_REQUEST = 30, 25


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=2, help="servers to start for each variant (default: %(default)s)"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="default: all")
    options = parser.parse_args()
    source = repository_of("demo")
    call_ms: dict[str, list[float]] = {name: [] for name in options.variants}
    pairs_per_s: dict[str, list[float]] = {name: [] for name in options.variants}
    missed = dict.fromkeys(options.variants, 0)
    for number in range(options.rounds):
        for name in options.variants:
            print(f"round {number + 1}: {name} ...", file=sys.stderr)
            with (
                tempfile.TemporaryDirectory() as folder,
                EmbeddedServer(with_batching(source, Path(folder), name)) as server,
            ):
                calls, gaps, throughput = measure(server.grpc_url)
            call_ms[name] += calls
            missed[name] += gaps
            pairs_per_s[name].append(throughput)
    for name, values in call_ms.items():
        print(
            f"{name:24s} a call of 100 short documents: median {statistics.median(values):.0f} ms, worst "
            f"{max(values):.0f} ms, {missed[name]} of {len(values)} gaps missed; "
            f"{CALLERS} callers: {statistics.median(pairs_per_s[name]):.0f} pairs/s"
        )
    first = options.variants[0]
    shipped_ms, shipped = statistics.median(call_ms[first]), statistics.median(pairs_per_s[first])
    print(
        "RESULT",
        *(f"{name}_call={statistics.median(call_ms[name]) / shipped_ms:.2f}" for name in options.variants),
        *(f"{name}_missed={missed[name]}/{options.rounds * CALLS}" for name in options.variants),
        *(f"{name}_throughput={statistics.median(pairs_per_s[name]) / shipped:.2f}" for name in options.variants),
    )


def with_batching(source: Path, target: Path, name: str) -> Path:
    """Write the repository of one of VARIANTS."""
    tokenizer, cross_encoder = VARIANTS[name]

    def change_tokenizer(config: model_config_pb2.ModelConfig) -> None:
        if tokenizer:
            config.dynamic_batching.Clear()
        text_format.Merge(tokenizer or "", config.dynamic_batching)

    def change_cross_encoder(config: model_config_pb2.ModelConfig) -> None:
        text_format.Merge(cross_encoder, config.dynamic_batching)

    return variant(source, target, {TOKENIZER: change_tokenizer, CROSS_ENCODER: change_cross_encoder})


def queued_s(url: str) -> float:
    """Seconds that requests have spent in the queues of the models so far."""
    return sum(totals(url, model).queue_ns for model in MODELS) / 1e9


def measure(url: str) -> tuple[list[float], int, float]:
    """Milliseconds of each call of a single caller, the gaps missed in them, and pairs/s of CALLERS callers."""
    short = [f"document {number} is a short one, of a dozen words or a few more" for number in range(100)]
    search = next(islice(generated(CALLERS * CALLER_DOCUMENTS, seed=1), 1))
    with (
        RerankClient(url, timeout=None, pairs_per_request=PAIRS_PER_REQUEST) as client,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        client.rerank("query", short)
        calls, missed = [], 0
        for _ in range(CALLS):
            before_s, start = queued_s(url), time.perf_counter()
            client.rerank("query", short)
            calls.append(1000 * (time.perf_counter() - start))
            missed += queued_s(url) - before_s >= MISSED_S
        start = time.perf_counter()
        parts = [search.documents[first::CALLERS] for first in range(CALLERS)]
        list(pool.map(lambda documents: client.rerank(search.query, documents), parts * 2))
        return calls, missed, 2 * len(search.documents) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
