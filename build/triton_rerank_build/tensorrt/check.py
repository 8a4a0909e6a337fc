"""Prove that a plan computes what the ONNX graph computes that it was built from.

The rows are those of the export's own proof. Each profile gets some of the rows that fit it, the longest among them,
padded to its longest bucket and repeated until the batch is full: the shape at which a plan needs most memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_build.errors import ParityError, RepositoryError
from triton_rerank_build.graphs.rows import template_layout
from triton_rerank_build.parity.compare import Batch, count_swapped, graph_logits, make_batches
from triton_rerank_build.tensorrt.profiles import Profile

# Largest difference of a logit from the same graph's on the CPU. A plan sums in another order; fp16 rounds each sum.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}

_ROWS = 8


@dataclass(frozen=True)
class Check:
    """The rows of one profile.

    Attributes:
        input_ids: [num_pairs, length] int32, different rows.
        attention_mask: [num_pairs, length] int32, with token types as in `Batch`.
        batch_size: Rows of the full batch.
    """

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32]
    batch_size: int

    def inputs(self) -> dict[str, npt.NDArray[np.int32]]:
        """The plan's inputs: the rows repeated to [batch_size, length]."""
        shape = (self.batch_size, self.input_ids.shape[1])
        return {
            "input_ids": np.resize(self.input_ids, shape),
            "attention_mask": np.resize(self.attention_mask, shape),
        }


def make_checks(tokenizer_file: Path, profiles: Sequence[Profile], *, token_types: bool) -> list[Check]:
    """One check per profile, from texts in many scripts.

    Args:
        tokenizer_file: The installed tokenizer.json.
        profiles: Of the plan; the last one has the longest pair.
        token_types: As in the manifest.

    Raises:
        RepositoryError: The file is not one that `export` wrote.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    if tokenizer.padding is None:
        raise RepositoryError(f"{tokenizer_file} lacks padding.pad_id: install it with `triton-rerank-build export`")
    pad_id = int(tokenizer.padding["pad_id"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    longest = profiles[-1].max_shape[1]
    batches = make_batches(tokenizer, longest, template_layout(tokenizer, pad_id, token_types=token_types))
    distinct = {row.tobytes(): row for batch in batches for row in _rows(batch)}
    rows = sorted(distinct.values(), key=len, reverse=True)  # each [length, 2]
    checks = []
    for profile in profiles:
        batch_size, length = profile.max_shape
        fitting = [row for row in rows if len(row) <= length]
        # The longest, and others down to the shortest.
        fitting = fitting[:: -(-len(fitting) // min(_ROWS, batch_size))]
        input_ids = np.full((len(fitting), length), pad_id, np.int32)
        attention_mask = np.zeros((len(fitting), length), np.int32)
        for index, row in enumerate(fitting):
            input_ids[index, : len(row)], attention_mask[index, : len(row)] = row.T
        checks.append(Check(input_ids, attention_mask, batch_size))
    return checks


def _rows(batch: Batch) -> list[npt.NDArray[np.int32]]:
    """Token ids and attention mask of each row without its padding, [length, 2]."""
    return [
        np.stack([ids, mask], axis=1)[mask > 0] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def expected_logits(graph: Path, checks: Sequence[Check]) -> list[npt.NDArray[np.float32]]:
    """[batch_size, 1] for each check, from the graph on this machine's CPU; each row is computed once."""
    batches = [
        Batch(f"profile {index}, row {row}", ids[None], mask[None])
        for index, check in enumerate(checks)
        for row, (ids, mask) in enumerate(zip(check.input_ids, check.attention_mask, strict=True))
    ]
    logits = iter(graph_logits(graph, batches))
    found = [np.concatenate([next(logits) for _ in check.input_ids]) for check in checks]
    return [np.resize(rows, (check.batch_size, 1)) for rows, check in zip(found, checks, strict=True)]


def compare_plan(
    expected: Sequence[npt.NDArray[np.float32]], found: Sequence[npt.NDArray[np.float32]], tolerance: float
) -> float:
    """The worst difference between a plan and its graph.

    Raises:
        ParityError: A logit is off by more than `tolerance` or is NaN, or two pairs whose logits are further apart than
            that change their order.
    """
    worst = 0.0
    for index, (want, got) in enumerate(zip(expected, found, strict=True)):
        difference = float(np.abs(got - want).max())
        # Written so that NaN fails.
        if not difference <= tolerance:
            raise ParityError(
                f"profile {index}: the plan's logits differ from the graph's by {difference:.3g}, tolerance "
                f"{tolerance:.3g} (graph {want.ravel()[:4].tolist()}, plan {got.ravel()[:4].tolist()})"
            )
        if swapped := count_swapped(want.ravel(), got.ravel(), tolerance):
            raise ParityError(f"profile {index}: {swapped} pairwise orderings differ")
        worst = max(worst, difference)
    return worst
