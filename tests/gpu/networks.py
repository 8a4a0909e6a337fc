"""Networks with random weights for the questions of `questions.py`: the shape of bge-reranker-v2-m3, and a tiny one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.tiny_models import tiny_checkpoint
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint
from triton_rerank_build.graphs.cross_encoder import RerankGraph
from triton_rerank_build.graphs.memory import V2_M3, Shape
from triton_rerank_build.graphs.onnx import export_onnx
from triton_rerank_build.graphs.weights import load_model
from triton_rerank_build.parity.compare import Batch

# The tokenizer has 600 pieces, the first of which are special.
_PAD_ID = 1
FIRST_PIECE, PIECES = 6, 500


@dataclass(frozen=True)
class Network:
    """A network and what is asked of it.

    Attributes:
        name: For the report.
        shape: Its sizes.
        layers: Number of layers.
        vocabulary: Rows of the embedding table.
        initializer_range: Deviation of the weights: large enough for logits that differ between rows.
        longest: Tokens of the longest row.
        check_lengths: Lengths of the rows whose logits are compared, all in one batch.
        memory_batches: Rows and tokens of each row, for the peaks of memory.
        documents: Rows of a call whose time is asked.
        tokens: Of each of them.
        most_rows: max_batch_size.
    """

    name: str
    shape: Shape
    layers: int
    vocabulary: int
    initializer_range: float
    longest: int
    check_lengths: tuple[int, ...]
    memory_batches: tuple[tuple[int, int], ...]
    documents: int
    tokens: int
    most_rows: int


NETWORKS = {
    "v2-m3": Network(
        name="bge-reranker-v2-m3's shape, random weights",
        shape=V2_M3,
        layers=24,
        vocabulary=250_002,
        initializer_range=0.05,
        longest=8192,
        check_lengths=(1, 2, 33, 180, 512, 2048),
        memory_batches=((64, 1024), (48, 8192)),
        documents=100,
        tokens=180,
        most_rows=128,
    ),
    "tiny": Network(
        name="2 layers x 32, random weights",
        shape=Shape(num_parameters=0, hidden_size=32, num_heads=4, intermediate_size=64),
        layers=2,
        vocabulary=600,
        initializer_range=0.3,
        longest=80,
        check_lengths=(1, 2, 9, 33),
        memory_batches=((4, 16), (2, 64)),
        documents=10,
        tokens=24,
        most_rows=16,
    ),
}


def make_network(network: Network, folder: Path) -> tuple[Path, Path]:
    """Write the checkpoint and its graphs at fp16.

    Returns:
        The folders of the checkpoint and of the graphs.
    """
    graphs = folder / "graphs"
    graphs.mkdir()
    checkpoint = tiny_checkpoint(
        folder / "checkpoint",
        "xlm-roberta",
        vocab_size=network.vocabulary,
        hidden_size=network.shape.hidden_size,
        num_hidden_layers=network.layers,
        num_attention_heads=network.shape.num_heads,
        intermediate_size=network.shape.intermediate_size,
        max_position_embeddings=network.longest + _PAD_ID + 1,
        initializer_range=network.initializer_range,
    )
    model = load_model(resolve_checkpoint(str(checkpoint)))
    graph = RerankGraph(model, dtype=torch.float16, token_types=False).eval()
    export_onnx(graph, graphs, precision="fp16", max_length=network.longest)
    return checkpoint, graphs


def check_batches(network: Network) -> dict[str, list[Batch]]:
    """Batches of requests whose logits are compared, by name."""
    rng = np.random.default_rng(0)
    ragged = [rows(rng, [length]) for length in network.check_lengths]
    ragged.append(rows(rng, [5, 40, 17]))
    of_padding = np.full((1, 16), _PAD_ID, np.int32)
    ragged.append(Batch("a row of padding", of_padding, np.zeros_like(of_padding)))
    with_pad = rows(rng, [20])
    with_pad.input_ids[0, 7] = _PAD_ID  # a literal pad in a text
    ragged.append(with_pad)
    return {"ragged": ragged, "longest": [rows(rng, [network.longest, 12])]}


def rows(rng: np.random.Generator, lengths: list[int]) -> Batch:
    """One request of rows of random tokens, padded to its longest row."""
    longest = max(lengths)
    inside = np.arange(longest)[None, :] < np.array(lengths)[:, None]
    ids = np.where(inside, rng.integers(FIRST_PIECE, PIECES, inside.shape), _PAD_ID)
    return Batch(f"{len(lengths)} x {longest}", ids.astype(np.int32), inside.astype(np.int32))


def mixed_lengths(network: Network) -> list[int]:
    """Lengths of documents as a search finds them: of the asked mean, the longest nearly three times as long."""
    drawn = np.random.default_rng(1).lognormal(0, 0.5, network.documents)
    scaled = drawn / drawn.mean() * network.tokens
    return [int(length) for length in np.clip(scaled, 4, min(network.longest, 512))]


def workloads(network: Network) -> dict[str, list[int]]:
    """Lengths of the rows of each call whose time is measured."""
    return {
        "one pair": [network.tokens],
        "documents": [network.tokens] * network.documents,
        "documents of mixed lengths": mixed_lengths(network),
        "full batch": [network.tokens] * network.most_rows,
    }
