"""Compare the packed graph with PyTorch, through its reference on the CPU (see `graphs.reference`).

The rows are those of `compare.make_batches`. Each batch there is a request here, and requests are joined as Triton
joins them. A row of padding alone, which Triton's warm-up sends, is joined too: the graph reads its first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from triton_rerank_build.contract import REFERENCE_FILE
from triton_rerank_build.parity.compare import PADDING, TOLERANCE, Batch, compare, cpu_session
from triton_rerank_build.parity.record import Parity
from triton_rerank_build.support.progress import bar

_WIDTH_OF_PADDING = 16


@dataclass(frozen=True)
class Joined:
    """Requests that Triton joins into one batch.

    Attributes:
        name: What the batch covers, for messages.
        requests: Indices of the batches that are its requests.
    """

    name: str
    requests: Sequence[int]


def join(requests: Sequence[Batch]) -> dict[str, npt.NDArray[np.int32]]:
    """The packed graph's inputs: the elements of all requests end to end, and the padded length of each row."""
    shapes = [request.input_ids.shape for request in requests]
    lengths = [np.full((rows, 1), length, np.int32) for rows, length in shapes]
    return {
        "input_ids": np.concatenate([request.input_ids.ravel() for request in requests]),
        "attention_mask": np.concatenate([request.attention_mask.ravel() for request in requests]),
        "row_length": np.concatenate(lengths),
    }


def joined_batches(batches: Sequence[Batch]) -> list[Joined]:
    """Every batch among others of other lengths, and a few alone."""
    texts = [index for index, batch in enumerate(batches) if batch.of_texts]
    lengths = [index for index, batch in enumerate(batches) if not batch.of_texts]
    shortest = min(lengths, key=lambda index: batches[index].input_ids.size)
    return [
        Joined("one request", texts[:1]),
        Joined("one token", [shortest]),
        Joined("all texts, a request each", texts),
        # In an order that puts long rows beside short ones.
        Joined("all lengths", np.random.default_rng(0).permutation(lengths).tolist()),
    ]


def packed_logits(
    graph: Path, batches: Sequence[Batch], joined: Sequence[Joined]
) -> list[list[npt.NDArray[np.float32]]]:
    """[num_pairs, 1] fp32 for each request of each joined batch.

    Args:
        graph: The packed graph, with its reference beside it if it needs one.
        batches: The requests.
        joined: Which of them are computed together.
    """
    reference = graph.with_name(REFERENCE_FILE)
    session = cpu_session(reference if reference.is_file() else graph)
    results = []
    for batch in bar(joined, "ONNX Runtime, packed"):
        requests = [_as_sent(batches[index]) for index in batch.requests]
        (logits,) = session.run(None, join(requests))
        results.append(np.split(logits, np.cumsum([len(request.input_ids) for request in requests])[:-1]))
    return results


def prove_packed(
    graph: Path, batches: Sequence[Batch], expected: Sequence[npt.NDArray[np.float32]], precision: str
) -> Parity:
    """Compare the packed graph with the reference logits of PyTorch.

    Args:
        graph: The packed graph, with its reference beside it if it needs one.
        batches: Padded rows, from `make_batches`.
        expected: PyTorch's logits of each batch.
        precision: Of the graph.

    Raises:
        ParityError: A logit differs by more than the precision allows, or the order does.
    """
    joined = joined_batches(batches)
    found = packed_logits(graph, batches, joined)
    rows, wanted = [], []
    for batch in joined:
        for index in batch.requests:
            request = batches[index]
            name = f"{batch.name}: {request.name}"
            rows.append(Batch(name, request.input_ids, request.attention_mask, request.of_texts))
            wanted.append(expected[index])
    return compare(rows, wanted, list(chain.from_iterable(found)), TOLERANCE[precision])


def _as_sent(batch: Batch) -> Batch:
    """The row of padding as Triton's warm-up sends it: its one token is padding by the mask too."""
    if batch.name != PADDING:
        return batch
    ids = np.full((1, _WIDTH_OF_PADDING), batch.input_ids[0, 0], np.int32)
    return Batch(batch.name, ids, np.zeros_like(ids))
