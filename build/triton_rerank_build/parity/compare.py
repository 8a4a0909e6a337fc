"""Compare the logits of an exported graph with PyTorch's.

The reference is transformers' own model in fp32; the graph runs on the CPU. Both get the same token ids: real texts
in many scripts, alone and in padded batches, from 2 tokens to the model's limit.

Up to 2,048 tokens the graph runs in ONNX Runtime, beyond that in OpenVINO: ONNX Runtime holds the whole matrix of
attention scores, twice, which is 8.6 GB for 16 heads at 8,192 tokens, while OpenVINO fuses the attention and computes
it in blocks.

At int8 logits differ by up to tenths. The ranking must be kept, in both runtimes, since each quantizes activations in
its own way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from triton_rerank_build.checkpoints.layout import LAST, Row, TextLayout
from triton_rerank_build.errors import ParityError
from triton_rerank_build.graphs.rows import encode_pair, encode_text
from triton_rerank_build.parity.record import Parity
from triton_rerank_build.parity.texts import HARD_PAIRS, PAIRS
from triton_rerank_build.support.progress import bar

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    from triton_rerank_build.graphs.networks import Logits

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
# The gate of int8. Pairs whose logits differ by less than INT8_NOISE (0.025 of a relevance score at most) may change
# their order; of the others Kendall's tau must reach LOWEST_TAU_BEYOND_NOISE. The demo reranker has 0.996; with one
# scale for a whole matrix it has 0.95, with 5 bits 0.94. Logits of random weights differ by hundredths, so that few
# pairs or none count: LOWEST_TAU, over all pairs, refuses a wrong graph there (0.88 in bge-reranker-v2-m3's shape).
INT8_NOISE = 0.1
LOWEST_TAU_BEYOND_NOISE = 0.97
LOWEST_TAU = 0.8
# Largest difference of a logit at int8, in standard deviations of PyTorch's logits.
INT8_DEVIATIONS = 1.0
# The setting of rerank_openvino: more than 128 values to a scale are 3 % faster and keep the order less well.
INT8_PROPERTIES = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
# Name of the batch that has one token, padding.
PADDING = "a row of padding"

_LONGEST_IN_ONNXRUNTIME = 2048
_LENGTHS = (1, 2, 3, 16, 33, 128, 512, 2048, 8192)
_MIXED_LENGTHS = (5, 12, 47, 64, 96, 200)


@dataclass(frozen=True)
class Batch:
    """Rows that are run together.

    Attributes:
        name: What the batch covers, for messages.
        input_ids: [num_pairs, length] int32.
        attention_mask: [num_pairs, length] int32: 0 = padding, 1 = token of type 0, 2 = token of type 1.
        of_texts: Whether the rows are whole texts; if not, texts cut or repeated to a certain length.
    """

    name: str
    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32]
    of_texts: bool = False


def make_batches(tokenizer: "Tokenizer", max_length: int, layout: TextLayout) -> list[Batch]:
    """The rows to compare: every text alone, all together, lengths from 1 token to `max_length`, a row of padding."""
    pairs = [encode_pair(tokenizer, layout, *pair) for pair in (*PAIRS, *HARD_PAIRS)]
    pairs = [pair if len(pair) <= max_length else _of_length(tokenizer, layout, 0, max_length) for pair in pairs]
    pad = partial(pad_rows, layout=layout)
    batches = [pad(f"pair {index} alone", [pair], of_texts=True) for index, pair in enumerate(pairs)]
    batches.append(pad("all pairs in one padded batch", pairs, of_texts=True))
    mixed = [length for length in _MIXED_LENGTHS if length <= max_length]
    rows = [_of_length(tokenizer, layout, index, length) for index, length in enumerate(mixed)]
    batches.append(pad("a batch of mixed lengths", rows))
    lengths = sorted({length for length in _LENGTHS if length < max_length} | {max_length})
    batches += [pad(f"{length} tokens", [_of_length(tokenizer, layout, length, length)]) for length in lengths]
    batches.append(Batch(PADDING, np.full((1, 1), layout.pad_id, np.int32), np.ones((1, 1), np.int32)))
    return batches


def reference_logits(logits: "Logits", batches: Sequence[Batch]) -> list[npt.NDArray[np.float32]]:
    """[num_pairs, 1] fp32 for each batch, from transformers' forward."""
    import torch

    results = []
    with torch.inference_mode():
        for batch in bar(batches, "PyTorch"):
            ids, mask = (torch.from_numpy(array).long() for array in (batch.input_ids, batch.attention_mask))
            results.append(logits(ids, mask).numpy())
    return results


def prove(path: Path, batches: Sequence[Batch], expected: Sequence[npt.NDArray[np.float32]], precision: str) -> Parity:
    """Compare an exported graph with the reference: logits at fp32 and fp16, the ranking at int8.

    Raises:
        ParityError: They differ by more than the precision allows.
    """
    if precision != "int8":
        return compare(batches, expected, graph_logits(path, batches), TOLERANCE[precision])
    short = [index for index, batch in enumerate(batches) if batch.input_ids.shape[1] <= _LONGEST_IN_ONNXRUNTIME]
    in_openvino = compare_ranking(batches, expected, _run_openvino(path, batches, INT8_PROPERTIES), "OpenVINO")
    few = [batches[index] for index in short]
    wanted = [expected[index] for index in short]
    in_onnxruntime = compare_ranking(few, wanted, _run_onnxruntime(path, few), "ONNX Runtime")
    worse = max(in_openvino, in_onnxruntime, key=lambda parity: parity.worst_difference)
    lower = min(in_openvino.kendall_tau, in_onnxruntime.kendall_tau)
    return replace(worse, num_pairs=in_openvino.num_pairs, longest=in_openvino.longest, kendall_tau=lower)


def graph_logits(path: Path, batches: Sequence[Batch]) -> list[npt.NDArray[np.float32]]:
    """[num_pairs, 1] fp32 for each batch, from the ONNX file."""
    short = [batch for batch in batches if batch.input_ids.shape[1] <= _LONGEST_IN_ONNXRUNTIME]
    long = [batch for batch in batches if batch.input_ids.shape[1] > _LONGEST_IN_ONNXRUNTIME]
    results = iter(_run_onnxruntime(path, short)), iter(_run_openvino(path, long) if long else [])
    return [next(results[batch.input_ids.shape[1] > _LONGEST_IN_ONNXRUNTIME]) for batch in batches]


def cpu_session(path: Path) -> "InferenceSession":
    """ONNX Runtime on the CPU, with as little memory as it can."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Prepacked weights are a second copy of the model, which pays off only over many runs.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # The arena would keep the buffers of every length.
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run_onnxruntime(path: Path, batches: Sequence[Batch]) -> list[npt.NDArray[np.float32]]:
    session = cpu_session(path)
    return [
        session.run(None, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})[0]
        for batch in bar(batches, "ONNX Runtime")
    ]


def _run_openvino(
    path: Path, batches: Sequence[Batch], properties: Mapping[str, str] = MappingProxyType({})
) -> list[npt.NDArray[np.float32]]:
    import openvino

    # By default OpenVINO computes in bf16 where the processor has it.
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties})
    return [
        np.array(model({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})[0])
        for batch in bar(batches, "OpenVINO")
    ]


def compare(
    batches: Sequence[Batch],
    expected: Sequence[npt.NDArray[np.float32]],
    found: Sequence[npt.NDArray[np.float32]],
    tolerance: float,
) -> Parity:
    """Compare the graph's logits with the reference.

    Raises:
        ParityError: A logit differs by more than `tolerance` or is NaN, a shape is wrong, or the order of two pairs
            differs whose logits are further apart than `tolerance`.
    """
    worst, worst_batch = 0.0, batches[0].name
    for batch, want, got in zip(batches, expected, found, strict=True):
        difference = _difference(batch, want, got)
        # Written so that NaN fails.
        if not difference <= tolerance:
            raise ParityError(
                f"{batch.name}: logits differ from PyTorch by {difference:.3g}, tolerance {tolerance:.3g} "
                f"(PyTorch {want.ravel()[:4].tolist()}, graph {got.ravel()[:4].tolist()})"
            )
        if difference >= worst:
            worst, worst_batch = difference, batch.name
    want, got = np.concatenate(expected).ravel(), np.concatenate(found).ravel()
    if swapped := count_swapped(want, got, tolerance):
        raise ParityError(f"{swapped} of {len(want) * (len(want) - 1) // 2} pairwise orderings differ")
    effect = effect_on_texts(batches, expected, found)
    longest = max(batch.input_ids.shape[1] for batch in batches)
    return Parity(worst, worst_batch, tolerance, len(want), longest, kendall_tau(want, got), *effect)


def compare_ranking(
    batches: Sequence[Batch],
    expected: Sequence[npt.NDArray[np.float32]],
    found: Sequence[npt.NDArray[np.float32]],
    runtime: str,
) -> Parity:
    """Compare the order of the graph's logits with the reference's: the gate of int8.

    Args:
        batches: The rows.
        expected: PyTorch's logits.
        found: The graph's logits.
        runtime: The runtime of the graph, for messages.

    Raises:
        ParityError: Kendall's tau is below `LOWEST_TAU`, or below `LOWEST_TAU_BEYOND_NOISE` over the pairs that differ
            by more than `INT8_NOISE`; a logit differs by more than `INT8_DEVIATIONS` or is NaN; or a shape is wrong.
    """
    differences = [_difference(*row) for row in zip(batches, expected, found, strict=True)]
    want, got = np.concatenate(expected).ravel(), np.concatenate(found).ravel()
    tolerance = INT8_DEVIATIONS * float(want.std())
    index = int(np.argmax(differences))  # NaN counts as the largest
    tau, clear_tau = kendall_tau(want, got), kendall_tau(want, got, INT8_NOISE)
    # Written so that NaN fails.
    if not (differences[index] <= tolerance and tau >= LOWEST_TAU and clear_tau >= LOWEST_TAU_BEYOND_NOISE):
        raise ParityError(
            f"int8 in {runtime} does not rank as PyTorch does: Kendall's tau {tau:.3f} over all pairs (needed: "
            f"{LOWEST_TAU}), {clear_tau:.3f} over pairs whose logits are more than {INT8_NOISE} apart (needed: "
            f"{LOWEST_TAU_BEYOND_NOISE}); logits differ by {differences[index]:.3g} "
            f"({batches[index].name}), tolerance {tolerance:.3g}"
        )
    longest = max(batch.input_ids.shape[1] for batch in batches)
    effect = effect_on_texts(batches, expected, found)
    return Parity(differences[index], batches[index].name, tolerance, len(want), longest, tau, *effect)


def effect_on_texts(
    batches: Sequence[Batch],
    expected: Sequence[npt.NDArray[np.float32]],
    found: Sequence[npt.NDArray[np.float32]],
) -> tuple[float, float]:
    """`Parity.score_change` and `Parity.reordered_margin`: what a user sees of the differences, over whole texts."""
    rows = [row for row in zip(batches, expected, found, strict=True) if row[0].of_texts]
    if not rows:
        return 0.0, 0.0
    want, got = (np.concatenate([row[index] for row in rows]).ravel().astype(np.float64) for index in (1, 2))
    scores = [1 / (1 + np.exp(-logits)) for logits in (want, got)]
    margins = want[:, None] - want[None, :]
    reordered = margins[(margins > 0) & (got[:, None] < got[None, :])]
    return float(np.abs(scores[1] - scores[0]).max()), float(reordered.max(initial=0.0))


def _difference(batch: Batch, want: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise ParityError(f"{batch.name}: logits are {got.dtype} {got.shape}, expected {want.dtype} {want.shape}")
    return float(np.abs(got - want).max())


def kendall_tau(
    want: npt.NDArray[np.float32], got: npt.NDArray[np.float32], apart_by: float = TOLERANCE["fp32"]
) -> float:
    """Kendall's tau of two orders, over the rows that `want` separates by more than `apart_by`; 1 if there are none.

    The default leaves out the same pair padded in two ways.
    """
    apart = want[:, None] - want[None, :] > apart_by
    order = np.sign(got[:, None] - got[None, :])[apart]
    return float(order.mean()) if len(order) else 1.0


def count_swapped(want: npt.NDArray[np.float32], got: npt.NDArray[np.float32], tolerance: float) -> int:
    """Number of (i, j) that `want` separates by more than `tolerance` and `got` orders the other way."""
    apart = want[:, None] - want[None, :] > tolerance
    return int((apart & (got[:, None] <= got[None, :])).sum())


def _of_length(tokenizer: "Tokenizer", layout: TextLayout, index: int, length: int) -> Row:
    """A pair of exactly `length` tokens, from texts that start at `index`."""
    query, document = PAIRS[index % len(PAIRS)]
    shortest = encode_pair(tokenizer, layout, query, document, query_length=1, length=0)
    if length < len(shortest) + 1:
        # Too short for a pair: its last tokens where the last is scored, otherwise its first ones and the last.
        kept = slice(len(shortest) - length, None) if layout.score_at == LAST else slice(length)
        row = Row(shortest.ids[kept], shortest.type_ids[kept])
        if layout.score_at != LAST and length > 1:
            row.ids[-1], row.type_ids[-1] = shortest.ids[-1], shortest.type_ids[-1]
        return row
    text = " ".join([document] + [words for _, words in PAIRS])
    while len(tokenizer.encode(text, add_special_tokens=False)) < length:
        text = f"{text} {text}"
    whole = len(encode_text(tokenizer, query, layout.query))
    query_length = min(whole, max(1, (length - len(shortest) + 1) // 2))
    return encode_pair(tokenizer, layout, query, text, length=length, query_length=query_length)


def pad_rows(name: str, rows: Sequence[Row], *, layout: TextLayout, of_texts: bool = False) -> Batch:
    """Rows of different lengths as one batch, padded on the right."""
    length = max(len(row) for row in rows)
    input_ids = np.full((len(rows), length), layout.pad_id, np.int32)
    attention_mask = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row.ids
        attention_mask[index, : len(row)] = np.array(row.type_ids) + 1
    return Batch(name, input_ids, attention_mask, of_texts)
