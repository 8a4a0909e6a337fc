"""How rows are best cut into micro-batches on this CPU.

Run: `PYTHONPATH=loadtest python -m benchmarks.micro_batches --shape base`.
In process, the same searches in turn by each plan:

- `budget`: rows sorted by length, as many together as fit a number of tokens;
- `cost`: the cuts of least cost, padding against what every run costs apart from its tokens;
- `packed`: rows end to end in one long row without padding, attention computed over all of it, which is what a graph
  for packed rows costs with a mask for each row (its scores mean nothing here);
- `floor`: what the tokens of the text alone would take at the speed of the best shape, which nothing can beat.

Before, it measures single shapes: a run's own cost in tokens is where the line through their seconds meets zero.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice

import numpy as np

from benchmarks.bench import repository_of
from benchmarks.in_process import BUDGETS, InProcessReranker
from benchmarks.shapes import SHAPES
from load.workload import generated
from triton_rerank_build.serving.backends.rerank_openvino.micro_batch_cuts import cut_by_cost, padded_length

LENGTHS = (64, 128, 256, 512)
ROWS = (1, 2, 4, 8)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="base", help="checkpoint (default: %(default)s)")
    parser.add_argument("--documents", type=int, nargs="+", default=[10, 100], help="of a call (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default: %(default)s)")
    options = parser.parse_args()
    alone = InProcessReranker(repository_of(options.shape))
    tokens_per_s, run_tokens = shapes(alone, options.rounds)
    print(f"best shape {tokens_per_s:.0f} tokens/s; a run costs {run_tokens:.0f} tokens apart from its own", flush=True)
    told = []
    for num_documents in options.documents:
        seconds = in_turn(alone, num_documents, options.rounds, tokens_per_s)
        reference = seconds[f"budget_{BUDGETS[0]}"]
        for name, values in seconds.items():
            ratio = statistics.median(theirs / ours for theirs, ours in zip(reference, values, strict=True))
            print(f"{num_documents} documents, {name}: {ratio:.3f} times as fast as budget_{BUDGETS[0]}", flush=True)
            told.append(f"{name}_{num_documents}={ratio:.3f}")
    print(f"RESULT run_tokens={run_tokens:.0f} " + " ".join(told))


def shapes(alone: InProcessReranker, rounds: int) -> tuple[float, float]:
    """Tokens per second of the best shape, and the cost of a run without tokens, in tokens of that speed."""
    points = []
    for length in LENGTHS:
        for rows in ROWS:
            seconds = min(timed(alone, [full(rows, length)]) for _ in range(rounds + 1))
            points.append((rows * length, seconds))
            print(
                f"{rows} x {length}: {1000 * seconds:.1f} ms, {rows * length / seconds:.0f} tokens/s", file=sys.stderr
            )
    tokens, seconds = np.array([point for point in points if point[0] <= 1024]).T
    slope, start = np.polyfit(tokens, seconds, 1)
    return max(count / spent for count, spent in points), start / slope


def in_turn(alone: InProcessReranker, num_documents: int, rounds: int, tokens_per_s: float) -> dict[str, list[float]]:
    """Seconds of each plan for each search; who begins changes every round."""
    plans = {f"budget_{budget}": partial(cut_by_budget, max_tokens=budget) for budget in BUDGETS}
    plans |= {f"cost_{budget}": partial(cut_by_cost, max_tokens=budget) for budget in BUDGETS[:2]}
    repeats = max(1, 50 // num_documents)
    seconds: dict[str, list[float]] = {name: [] for name in [*plans, "packed", "floor"]}
    searches = list(islice(generated(num_documents, seed=1), (rounds + 1) * repeats))
    for number in range(rounds + 1):
        spent = dict.fromkeys(seconds, 0.0)
        for search in searches[number * repeats : (number + 1) * repeats]:
            rows = sorted(alone.encode(search.query, list(search.documents)), key=len, reverse=True)
            lengths = [padded_length(len(row), alone.max_length) for row in rows]
            batches = {
                name: [full(end - start, lengths[start]) for start, end in plan(lengths)]
                for name, plan in plans.items()
            }
            batches["packed"] = [*packed(rows, alone.max_length)]
            names = list(batches)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                spent[name] += timed(alone, batches[name])
            spent["floor"] += sum(map(len, rows)) / tokens_per_s
        if number:  # the first round prepares the kernels of its shapes
            for name, value in spent.items():
                seconds[name].append(value)
    return seconds


def cut_by_budget(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Cut padded lengths, longest first, as many together as fit `max_tokens`."""
    cuts, start = [], 0
    while start < len(lengths):
        end = min(len(lengths), start + max(1, max_tokens // lengths[start]))
        cuts.append((start, end))
        start = end
    return cuts


def full(num_rows: int, length: int) -> np.ndarray:
    """A micro-batch without padding."""
    return np.full((num_rows, length), 100, np.int32)


def packed(rows: Sequence[Sequence[int]], max_length: int) -> list[np.ndarray]:
    """One long row after another; they end where the positions of the checkpoint do."""
    total = sum(map(len, rows))
    lengths = [max_length] * (total // max_length) + [total % max_length] * bool(total % max_length)
    return [full(1, length) for length in lengths]


def timed(alone: InProcessReranker, batches: Sequence[np.ndarray]) -> float:
    """Seconds of these micro-batches."""
    start = time.perf_counter()
    for ids in batches:
        alone.infer_request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)}, share_inputs=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
