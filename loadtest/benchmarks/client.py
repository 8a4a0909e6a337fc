"""The client's own time per call: `PYTHONPATH=loadtest python -m benchmarks.client`. Needs no Triton.

A server in a process of its own speaks Triton's protocol and answers at once with zeros. The measurement covers the
client's work: splitting, encoding, gRPC, decoding, ordering. Wall times include that server; the CPU time of this
process is the client's alone, gRPC's threads included. Times are medians. `own` and `naive` are CPU times, which other
programs on the machine affect least.
"""

import argparse
import asyncio
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from triton_rerank import AsyncRerankClient, RerankClient
from triton_rerank.ranking.batching import Limits
from triton_rerank.ranking.documents import Inputs
from triton_rerank.ranking.rerank import RerankJob, RerankOptions
from triton_rerank.transport import messages
from triton_rerank.transport.responses import read_scores

QUERY = "what does a cross-encoder read?"
OPTIONS = RerankOptions()
DOCUMENT = "A cross-encoder reads the query and the document together. " * 17  # 1 kB
COUNTS = (1, 10, 100, 1000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="duration of each measurement (default: %(default)g)"
    )
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    own = {count: own_time(count, options.seconds) for count in COUNTS}
    command = [sys.executable, "-m", "benchmarks.client", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        titles = ("own", "naive", "sync cpu", "sync", "async cpu", "async")
        print(f"{'documents':>9} " + " ".join(f"{title:>9}" for title in titles) + "   ms")
        for count in COUNTS:
            sync = call_time(url, count, options.seconds)
            awaited = asyncio.run(async_call_time(url, count, options.seconds))
            naive = naive_encoding(count, options.seconds)
            figures = (own[count], naive, *sync, *awaited)
            print(f"{count:>9} " + " ".join(f"{figure:9.3f}" for figure in figures))
        ratio = asyncio.run(throughput_ratio(url, options.seconds))
        server.stdin.close()
    print(
        "own: split, encode, decode, order. naive: tritonclient's set_data_from_numpy only. cpu: CPU time of the client"
    )
    print(f"RESULT client_ms_100={own[100]:.3f} client_ms_1000={own[1000]:.3f} async64_over_async8={ratio:.2f}")


def documents_of(count: int) -> list[str]:
    """Documents of 1 kB, all different."""
    return [f"{number} {DOCUMENT}"[:1000] for number in range(count)]


def median_ms(work: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Median CPU and wall milliseconds of `work`."""
    walls, cpus, end = [], [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(walls) < 5:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(cpus) * 1e3, statistics.median(walls) * 1e3


def own_time(count: int, seconds: float) -> float:
    """Milliseconds of the client's own code, without gRPC, on prepared answers."""
    documents = documents_of(count)
    answers = [
        zeros(len(part.rows)) for part in RerankJob(Inputs.read(QUERY, documents), OPTIONS).next_round(Limits(32))
    ]

    def work() -> None:
        job = RerankJob(Inputs.read(QUERY, documents), OPTIONS)
        parts = job.next_round(Limits(32))
        for part in parts:
            messages.infer_request("reranker", part, job.parameters)
        for part, answer in zip(parts, answers, strict=True):
            job.take(part, read_scores(answer, len(part.rows)))
        job.next_round(Limits(32))
        job.results()
        job.usage()

    return median_ms(work, seconds)[0]


def naive_encoding(count: int, seconds: float) -> float:
    """Milliseconds of tritonclient's serialization of the same texts."""
    from tritonclient.grpc import InferInput

    documents = documents_of(count)

    def work() -> None:
        for start in range(0, count, 32):
            texts = [document.encode() for document in documents[start : start + 32]]
            for name, column in (("query", [QUERY.encode()] * len(texts)), ("document", texts)):
                tensor = np.array(column, dtype=np.object_).reshape(-1, 1)
                InferInput(name, tensor.shape, "BYTES").set_data_from_numpy(tensor)

    return median_ms(work, seconds)[0]


def call_time(url: str, count: int, seconds: float) -> tuple[float, float]:
    """CPU and wall milliseconds of a blocking call."""
    documents = documents_of(count)
    with RerankClient(url) as client:
        client.rerank(QUERY, documents)
        return median_ms(lambda: client.rerank(QUERY, documents), seconds)


async def async_call_time(url: str, count: int, seconds: float) -> tuple[float, float]:
    """CPU and wall milliseconds of an awaited call."""
    documents, cpus, walls = documents_of(count), [], []
    async with AsyncRerankClient(url) as client:
        await client.rerank(QUERY, documents)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(walls) < 5:
            cpu, wall = time.process_time(), time.perf_counter()
            await client.rerank(QUERY, documents)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return statistics.median(cpus) * 1e3, statistics.median(walls) * 1e3


async def throughput_ratio(url: str, seconds: float) -> float:
    """Calls per second of 64 concurrent callers over those of 8; both alternate."""
    rates: dict[int, list[float]] = {8: [], 64: []}
    documents = documents_of(10)
    async with AsyncRerankClient(url) as client:
        await client.rerank(QUERY, documents)
        for _ in range(4):
            for callers, found in rates.items():
                found.append(await calls_per_second(client, documents, callers, seconds / 2))
    return statistics.median(rates[64]) / statistics.median(rates[8])


async def calls_per_second(client: AsyncRerankClient, documents: list[str], callers: int, seconds: float) -> float:
    """Calls per second of `callers` in a closed loop."""
    started, done = time.perf_counter(), 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < started + seconds:
            await client.rerank(QUERY, documents)
            done += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - started)


def zeros(num_pairs: int) -> Any:  # noqa: ANN401  (a protobuf message; tritonclient has no types)
    """The answer to any request of `num_pairs` rows."""
    from tritonclient.grpc import service_pb2

    response = service_pb2.ModelInferResponse(model_name="reranker")
    for name, datatype, size in (("logits", "FP32", 4), ("num_tokens", "INT32", 4), ("truncated", "BOOL", 1)):
        response.outputs.add(name=name, datatype=datatype, shape=[num_pairs, 1])
        response.raw_output_contents.append(bytes(size * num_pairs))
    return response


def description() -> Any:  # noqa: ANN401
    """The tokenizer's description of the model."""
    from tritonclient.grpc import service_pb2

    said = b"{}"
    response = service_pb2.ModelInferResponse(model_name="tokenizer")
    response.outputs.add(name="model_info", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.append(len(said).to_bytes(4, "little") + said)
    return response


def serve(pairs_per_s: float = math.inf) -> None:
    """Answer every request with zeros until stdin is closed.

    Args:
        pairs_per_s: Speed of a stand-in for a model: it takes one request after another and sleeps meanwhile.
    """
    import grpc
    from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

    class Zeros(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401  (the protocol's name)
            config = model_config_pb2.ModelConfig(max_batch_size=64)
            for name in ("tokenizer", "cross_encoder") if request.name == "reranker" else ():
                config.ensemble_scheduling.step.add(model_name=name)
            return service_pb2.ModelConfigResponse(config=config)

        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401
            if request.model_name != "reranker":
                return description()
            num_pairs = request.inputs[0].shape[0]
            if pairs_per_s < math.inf:
                with busy:
                    time.sleep(num_pairs / pairs_per_s)
            return zeros(num_pairs)

    busy = threading.Lock()
    server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Zeros(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
