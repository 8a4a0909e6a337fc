"""Loss of ranking quality by the type of cached vectors.

    PYTHONPATH=loadtest python -m benchmarks.late_vectors --beir SET [SET ...]

Encodes whole small collections with demo-late in this process, once, and ranks all documents for each query with the
code of the served model: document vectors as fp16, and as int8. int4 (15 steps instead of 255) is only simulated.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer
from tqdm import tqdm

from benchmarks.late_interaction import repository
from benchmarks.late_stages import module
from triton_rerank.evaluation.collections import Collection, beir_files, load_files
from triton_rerank.evaluation.measures import measure
from triton_rerank_build.late_interaction.repository import ENCODER, SCORER, read_late_manifest
from triton_rerank_build.late_interaction.settings import LateSettings, Side, make_row

MEASURE = "nDCG@10"
BATCH = 16


def main() -> None:
    """Encode, rank and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beir", type=Path, nargs="+", required=True, metavar="SET", help="folders in BEIR layout")
    parser.add_argument("--max-queries", type=int, default=300, help="queries per set (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=180, help="tokens of a document (default: %(default)s)")
    options = parser.parse_args()
    folder = repository()
    encoder = Encoder(folder, options.max_length)
    max_sim = module(folder / SCORER, "max_sim")
    losses = []
    for path in options.beir:
        collection = load_files(beir_files(path), options.max_queries)
        queries = dict(zip(collection.queries, encoder.encode("query", collection.queries.values()), strict=True))
        documents = list(encoder.encode("document", collection.documents.values()))
        found = {}
        for name, vectors in (
            ("fp16", [vectors.astype(np.float16) for vectors in documents]),
            ("int8", [max_sim.int8_vectors(vectors) for vectors in documents]),
            ("int4", [int4(vectors) for vectors in documents]),
        ):
            scores = (max_sim.mean_best_cosines(query.astype(np.float16), vectors) for query in queries.values())
            run = {
                key: dict(zip(collection.documents, s.tolist(), strict=True))
                for key, s in zip(queries, scores, strict=True)
            }
            found[name] = measure([MEASURE], collection.qrels, run)
        losses.append(report(path.name, collection, found))
    print(f"RESULT sets={len(losses)} int8_worst_loss_points={max(losses):.2f}")


def report(name: str, collection: Collection, found: dict) -> float:
    """Print one set; the points that int8 loses."""
    points = {kind: 100 * measured.mean[MEASURE] for kind, measured in found.items()}
    values = {kind: measured.per_query[MEASURE] for kind, measured in found.items()}
    changed = sum(values["fp16"][key] != values["int8"][key] for key in values["fp16"])
    shown = ", ".join(f"{kind} {value:.2f}" for kind, value in points.items())
    sizes = f"{len(collection.documents)} documents, {len(collection.queries)} queries"
    print(f"{name}: {sizes}, {MEASURE} in points: {shown}; int8 changes {changed} queries", flush=True)
    return points["fp16"] - points["int8"]


class Encoder:
    """demo-late in OpenVINO, bf16 where the processor has it."""

    def __init__(self, folder: Path, max_length: int) -> None:
        manifest = read_late_manifest(folder)
        if manifest is None or manifest.settings is None:
            sys.exit(f"{folder} holds no late interaction")
        self.settings: LateSettings = manifest.settings
        self.max_length = max_length
        self.tokenizer = Tokenizer.from_file(str(folder / SCORER / "tokenizer.json"))
        self.tokenizer.no_truncation()
        model = openvino.Core().compile_model(folder / ENCODER / "model.onnx", "CPU")
        self.request = model.create_infer_request()

    def encode(self, kind: str, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """The scored vectors of each text, [num_vectors, dim] float32; special tokens are not scored in demo-late."""
        side: Side = getattr(self.settings, kind)
        rows = [make_row(self.tokenizer, side, text)[0][: self.max_length] for text in texts]
        found: dict[int, np.ndarray] = {}
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in tqdm(range(0, len(order), BATCH), desc=f"encoding {kind}", disable=None):
            batch = order[start : start + BATCH]
            length = max(len(rows[index]) for index in batch)
            ids = np.full((len(batch), length), self.settings.pad_id, np.int32)
            mask = np.zeros((len(batch), length), np.int32)
            for row, index in enumerate(batch):
                ids[row, : len(rows[index])], mask[row, : len(rows[index])] = rows[index], 1
            vectors = self.request.infer({"input_ids": ids, "attention_mask": mask})["vectors"]
            for index, row in zip(batch, vectors.reshape(len(batch), length, -1), strict=True):
                found[index] = row[len(side.before) : len(rows[index]) - len(side.after)].copy()
        return (found[index] for index in range(len(rows)))


def int4(vectors: np.ndarray) -> np.ndarray:
    """Rounded to 1/7 of each vector's largest number, as float16."""
    step = np.abs(vectors).max(axis=1, keepdims=True) / 7
    return (np.rint(vectors / step) * step).astype(np.float16)


if __name__ == "__main__":
    main()
