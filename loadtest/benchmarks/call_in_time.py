"""Where the time of one call goes: `PYTHONPATH=loadtest python -m benchmarks.call_in_time`.

Triton traces one request (`--trace-config`); the client's clock is the same, CLOCK_MONOTONIC. Prints the rows of the
table that docs/figures.py draws: part, kind, and when it began and ended in milliseconds since the call, which is the
one with the median duration of several.
"""

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

from benchmarks.late_interaction import repository
from load.workload import generated
from triton_rerank import RerankClient
from triton_rerank_build import EmbeddedServer

Row = tuple[str, str, float, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20, help="of a call (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=21, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        words = ("mode=triton", f"triton,file={trace}", "level=TIMESTAMPS", "rate=1", "triton,log-frequency=1")
        traced = [f"--trace-config={word}" for word in words]
        calls = []
        with (
            EmbeddedServer(repository(), model="reranker", arguments=traced) as server,
            RerankClient(server.grpc_url) as client,
        ):
            client.rerank("warm", ["up"])
            for search in islice(generated(options.documents, seed="trace"), options.calls):
                start = time.monotonic_ns()
                response = client.rerank(search.query, search.documents)
                calls.append((start, time.monotonic_ns(), response.usage.num_tokens))
        events = [event for file in Path(folder).glob("trace*") for event in json.loads(file.read_text())]
    calls.sort(key=lambda call: call[1] - call[0])
    start, end, tokens = calls[len(calls) // 2]
    print("| part | kind | from, ms | to, ms |\n|---|---|---|---|")
    found = rows(events, start, end)
    for part, kind, begin, finish in found:
        print(f"| {part} | {kind} | {begin:.2f} | {finish:.2f} |")
    compute = next(finish - begin for part, _, begin, finish in found if part == "cross_encoder")
    print(
        f"RESULT documents={options.documents} tokens={tokens} total_ms={(end - start) / 1e6:.1f} "
        f"outside_compute_ms={(end - start) / 1e6 - compute:.2f}"
    )


def rows(events: list[dict], start: int, end: int) -> list[Row]:
    """Parts of the call between two readings of the monotonic clock, from Triton's trace.

    `rerank_openvino` takes a request over and answers it later: its computation ends with the ensemble's answer.
    """
    heads = {event["id"]: event for event in events if "model_name" in event}
    moments: dict[int, dict[str, int]] = {identifier: {} for identifier in heads}
    for event in events:
        for stamp in event.get("timestamps", ()):
            moments[event["id"]][stamp["name"]] = stamp["ns"]
    traced = next(id_ for id_, head in heads.items() if _began(head, moments[id_], start, end))
    steps = {head["model_name"]: moments[id_] for id_, head in heads.items() if head.get("parent_id") == traced}
    ensemble, tokenizer, scorer = moments[traced], steps["tokenizer"], steps["cross_encoder"]
    parts = (
        ("client: check, encode, send", "client", start, ensemble["REQUEST_START"]),
        ("tokenizer: queue", "queue", tokenizer["QUEUE_START"], tokenizer["COMPUTE_START"]),
        ("tokenizer", "compute", tokenizer["COMPUTE_START"], tokenizer["COMPUTE_END"]),
        ("cross_encoder: queue", "queue", scorer["QUEUE_START"], scorer["COMPUTE_START"]),
        ("cross_encoder", "compute", scorer["COMPUTE_START"], ensemble["INFER_RESPONSE_COMPLETE"]),
        ("client: receive, join, sort", "client", ensemble["INFER_RESPONSE_COMPLETE"], end),
    )
    return [(part, kind, (begin - start) / 1e6, (finish - start) / 1e6) for part, kind, begin, finish in parts]


def _began(head: dict, moments: dict[str, int], start: int, end: int) -> bool:
    return head["model_name"] == "reranker" and start <= moments["REQUEST_START"] <= end


if __name__ == "__main__":
    main()
