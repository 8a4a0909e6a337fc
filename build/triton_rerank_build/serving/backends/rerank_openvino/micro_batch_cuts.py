"""Cuts rows, sorted by length, into micro-batches. For `rerank_openvino`, `late_scorer` and the load tests.

The one source file is backends/rerank_openvino/micro_batch_cuts.py. `triton-rerank-build export` copies it beside the
model.py of `late_scorer`: Triton's Python stub adds the folder of a model.py to sys.path. NVIDIA's container has no
package of this project, so this file imports only Python's own modules.
"""

from collections.abc import Sequence

# Lengths are rounded up to a multiple of this: runtimes prepare their kernels once per shape and join requests of equal
# length, and an even number of tokens keeps the bf16 units of attention busy.
LENGTH_STEP = 16
# What one run of a graph costs apart from its tokens, in tokens: it reads the weights from memory. About 10 with
# AVX512, more where arithmetic is faster; values from 16 to 64 give equally fast cuts, as
# loadtest/benchmarks/micro_batches.py measures.
RUN_TOKENS = 64


def padded_length(length: int, max_length: int) -> int:
    """`length` rounded up to the length of a micro-batch, at most `max_length`."""
    return min(-(-length // LENGTH_STEP) * LENGTH_STEP, max_length)


def cut_by_cost(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> list[tuple[int, int]]:
    """Cut rows into the micro-batches that cost least: padded tokens, and RUN_TOKENS for each micro-batch.

    Args:
        lengths: Padded length of each row, longest first.
        max_tokens: Tokens of a micro-batch at most, padding included; one row may have more.
        max_rows: Rows of a micro-batch at most; any number if None.

    Returns:
        Start and end of each micro-batch, in order.
    """
    count = len(lengths)
    max_rows = max_rows or count
    costs, ends = [0] * (count + 1), [0] * count  # of the rows from each index on
    for start in reversed(range(count)):
        length = lengths[start]
        last = min(count, start + max_rows, start + max(1, max_tokens // length))
        best = start + 1
        for end in range(start + 2, last + 1):  # a plain loop: faster than `min` of a generator
            if length * end + costs[end] < length * best + costs[best]:
                best = end
        costs[start], ends[start] = RUN_TOKENS + length * (best - start) + costs[best], best
    cuts, start = [], 0
    while start < count:
        cuts.append((start, ends[start]))
        start = ends[start]
    return cuts
