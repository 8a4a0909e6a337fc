"""Parts of the model late_scorer, without Triton: the score against plain numpy, the size and order of the cache."""

import importlib.util

import numpy as np
import pytest

from triton_rerank_build.late_interaction.repository import TEMPLATES


def load(name):
    """A module of the model that imports neither Triton's nor a neighbour."""
    spec = importlib.util.spec_from_file_location(name, TEMPLATES / "late_scorer/1" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


max_sim, vector_cache = load("max_sim"), load("vector_cache")


def unit_vectors(generator, count, dim=24):
    vectors = generator.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_every_finite_fp16_number_is_widened_exactly():
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = numbers[np.isfinite(numbers)][None]
    widened = max_sim.widened(finite)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened.view(np.int32), finite.astype(np.float32).view(np.int32))


@pytest.mark.parametrize("block", [1, 50, 100_000])
def test_the_score_is_that_of_plain_loops(monkeypatch, block):
    monkeypatch.setattr(max_sim, "BLOCK_VECTORS", block)
    generator = np.random.default_rng(5)
    query = unit_vectors(generator, 7)
    documents = [unit_vectors(generator, count) for count in (1, 30, 0, 64, 2, 0)]
    found = max_sim.mean_best_cosines(query, documents)
    for document, cosine in zip(documents, found, strict=True):
        dots = [[float(a.astype(float) @ b.astype(float)) for b in document] for a in query]
        expected = np.mean([max(row) for row in dots]) if len(document) else -1
        assert cosine == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dim", [3, 128, 1024])
def test_int8_vectors_take_half_the_memory_and_are_off_by_half_a_step(dim):
    generator = np.random.default_rng(8)
    vectors = np.concatenate([unit_vectors(generator, 50, dim), np.zeros((1, dim), np.float16)])
    small = max_sim.int8_vectors(vectors.astype(np.float32))
    assert small.nbytes == len(vectors) * (dim + 2)
    found = max_sim.dot_products(np.eye(dim, dtype=np.float32), small).T
    step = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float32) / 127
    # Half a step, and what fp16 takes from the scale over 127 steps.
    assert (np.abs(found - vectors) <= 0.57 * step + 1e-5).all()
    query = unit_vectors(generator, 5, dim)
    exact, rounded = (max_sim.mean_best_cosines(query, [v[:20], v[20:]]) for v in (vectors, small))
    assert 0 < np.abs(exact - rounded).max() < 0.01


def test_what_has_no_vectors_has_the_lowest_score_and_a_query_without_them_none():
    vectors = unit_vectors(np.random.default_rng(6), 3)
    none = vectors[:0]
    assert max_sim.mean_best_cosines(vectors, [none, none]).tolist() == [-1, -1]
    assert max_sim.mean_best_cosines(none, [vectors, none]).tolist() == [0, 0]
    assert max_sim.mean_best_cosines(vectors, []).tolist() == []


def entry(vectors):
    return vector_cache.Encoded(np.zeros((vectors, 4), np.float16), vectors, False)


def test_the_least_recently_used_entries_make_room():
    size = entry(10).bytes
    cache = vector_cache.VectorCache(3 * size)
    assert cache.put({name: entry(10) for name in "abc"}) == 0
    assert cache.bytes == 3 * size
    assert cache.get("axy").keys() == {"a"}
    assert cache.put({"d": entry(10)}) == 1
    assert cache.get("abcd").keys() == {"a", "c", "d"}  # "b" was used least recently
    assert cache.put({"e": entry(30)}) > 1
    assert cache.bytes <= 3 * size


def test_an_entry_larger_than_the_cache_is_not_kept_and_one_that_is_there_stays():
    cache = vector_cache.VectorCache(entry(10).bytes)
    first = entry(10)
    assert cache.put({"a": first}) == cache.put({"b": entry(11)}) == cache.put({"a": entry(10)}) == 0
    assert cache.get("ab") == {"a": first}
    assert vector_cache.VectorCache(0).put({"a": first}) == 0
