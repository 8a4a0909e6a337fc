"""Stages of scoring known documents, in this process: part of `benchmarks.late_cache`."""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

VECTORS, DIM, QUERY_VECTORS, BATCH = 180, 128, 32, 128


def stages(before: Path, after: Path, num_documents: int, rounds: int = 15) -> None:
    """Print the milliseconds of each stage for one call, both sides in turn, with as many BLAS threads as cores.

    Args:
        before: Repository with the models of release 0.1.0's layout.
        after: Repository of this checkout.
        num_documents: Documents of the call, `BATCH` in a request.
        rounds: Repetitions; the median counts.
    """
    old = module(before / "late_scorer/1", "model")
    max_sim = module(after / "late_scorer/1", "max_sim")
    score = max_sim.mean_best_cosines
    cache = module(after / "late_scorer/1", "vector_cache")
    rows = module(after / "late_scorer/1", "text_rows")
    generator = np.random.default_rng(3)
    documents = [unit_vectors(generator, VECTORS) for _ in range(num_documents)]
    query = unit_vectors(generator, QUERY_VECTORS)
    requests = [documents[start : start + BATCH] for start in range(0, num_documents, BATCH)]
    small = [[max_sim.int8_vectors(vectors) for vectors in request] for request in requests]
    cells = [f"document {number} ".encode() * 50 for number in range(num_documents)]
    settings = {"prefix": "", "before": [0], "after": [1], "max_length": 512, "fill_id": None, "special_scored": True}
    side = rows.Side("document", settings)
    known = cache.VectorCache(1 << 40)
    known.put({side.key(cell, 512): cache.Encoded(d, VECTORS, False) for cell, d in zip(cells, documents, strict=True)})
    joined = np.concatenate(documents).astype(np.float32)
    timings = medians(
        {
            "scores before": lambda: [old.mean_best_cosines(query, request) for request in requests],
            "scores after": lambda: [score(query, request) for request in requests],
            "scores after, int8": lambda: [score(query, request) for request in small],
            "the matrix product alone": lambda: query.astype(np.float32) @ joined.T,
            "keys and look-up after": lambda: known.get([side.key(cell, 512) for cell in cells]),
        },
        rounds,
    )
    print("stages, ms: " + ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in timings.items()))


def unit_vectors(generator: np.random.Generator, count: int) -> np.ndarray:
    """[count, DIM] float16 of length 1."""
    vectors = generator.standard_normal((count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def module(folder: Path, name: str) -> ModuleType:
    """A module of a served model; Triton's own is not called."""
    sys.modules.setdefault("triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each function, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
