"""Peak memory of a batch in the packed graph, on a CPU in fp32, beside the arithmetic of `graphs.memory`.

Run: `PYTHONPATH=loadtest python -m benchmarks.batch_memory`.
Writes graphs with random weights and runs each batch in a process of its own, by way of the reference graph.
"""

import argparse
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np

from triton_rerank_build.graphs.memory import Shape, batch_bytes

SHAPES = (Shape(0, 384, 12, 1536), Shape(0, 1024, 16, 4096))
BATCHES = ((64, 64), (64, 128), (16, 512), (2, 4096))  # rows, tokens of each
_FP32 = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="layers of the network (default: %(default)s)")
    options = parser.parse_args()
    # glibc then returns every large buffer at once, so that the peak is what is in use.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "0"}
    ratios = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            reference = write_graphs(shape, options.layers, Path(folder))
            for rows, length in BATCHES:
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    taken = process.apply(peak_bytes, (reference, rows, length))
                # On a CPU nothing fuses bias and Gelu, which then hold a third tensor.
                gelu = rows * length * shape.intermediate_size * _FP32
                ratios.append(taken / (batch_bytes(shape, rows * length, _FP32) + gelu))
                per_token = taken / (rows * length * shape.hidden_size)
                print(
                    f"width {shape.hidden_size}, {rows} x {length}: {per_token:.1f} bytes per token and unit of width, "
                    f"{ratios[-1]:.2f} of the arithmetic",
                    flush=True,
                )
    print(f"RESULT lowest_ratio={min(ratios):.2f} highest_ratio={max(ratios):.2f}")


def write_graphs(shape: Shape, layers: int, folder: Path) -> Path:
    """Write the graphs of a network with random weights, in fp32.

    Returns:
        The path of the reference of the packed graph.
    """
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    from triton_rerank_build.contract import MODEL_FILE, PADDED_FILE, REFERENCE_FILE
    from triton_rerank_build.graphs.cross_encoder import RerankGraph
    from triton_rerank_build.graphs.onnx import write_graph, write_packed
    from triton_rerank_build.graphs.packed import PackedGraph
    from triton_rerank_build.graphs.reference import write_reference

    config = XLMRobertaConfig(
        vocab_size=1000,
        hidden_size=shape.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=8194,
        type_vocab_size=1,
        num_labels=1,
    )
    model = XLMRobertaForSequenceClassification(config).eval()
    graph = RerankGraph(model, dtype=torch.float32, token_types=False).eval()
    write_graph(graph, folder / PADDED_FILE, max_length=8192, output_name="logits")
    write_packed(PackedGraph(graph), folder / MODEL_FILE, weights_of=folder / PADDED_FILE)
    write_reference(folder / MODEL_FILE, folder / REFERENCE_FILE)
    return folder / REFERENCE_FILE


def peak_bytes(reference: Path, rows: int, length: int) -> int:
    """Peak resident memory of one batch, above that before it."""
    from triton_rerank_build.parity.compare import cpu_session

    session = cpu_session(reference)
    session.run(None, feed(1, 16))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to VmRSS
    session.run(None, feed(rows, length))
    return status("VmHWM") - before


def feed(rows: int, length: int) -> dict[str, np.ndarray]:
    """Rows without padding."""
    return {
        "input_ids": np.full(rows * length, 7, np.int32),
        "attention_mask": np.ones(rows * length, np.int32),
        "row_length": np.full((rows, 1), length, np.int32),
    }


def status(key: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this kernel does not report {key}")


if __name__ == "__main__":
    main()
