"""The packed graph in ONNX Runtime on CUDA: the logits of the CPU, fused, fast, and within the stated memory."""

import time
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from triton_rerank_build.graphs.memory import Shape, batch_bytes
from triton_rerank_build.parity.compare import Batch
from triton_rerank_build.parity.packed import join
from triton_rerank_build.repository.layout import padded_graph
from triton_rerank_build.repository.manifest import read_manifest
from triton_rerank_build.tensorrt.check import expected_logits, make_checks
from triton_rerank_build.tensorrt.profiles import make_profiles, read_served_shapes


@pytest.fixture
def make_session(cuda_provider):
    # As config.pbtxt has it.
    provider = (cuda_provider, {"arena_extend_strategy": "kSameAsRequested"})

    def make(repository, **options):
        settings = onnxruntime.SessionOptions()
        for name, value in options.items():
            setattr(settings, name, value)
        session = onnxruntime.InferenceSession(
            repository / "cross_encoder/1/model.onnx", settings, providers=[provider]
        )
        assert session.get_providers()[0] == cuda_provider, "CUDA did not start"
        return session

    return make


def packed(check):
    """The rows of a check as one request for the packed graph."""
    return join([Batch("rows", **check.inputs())])


def worst_difference(repository, session):
    """Of the logits of full batches from those of the padded graph on the CPU."""
    max_length = Tokenizer.from_file(str(repository / "tokenizer/1/tokenizer.json")).truncation["max_length"]
    profiles = make_profiles(read_served_shapes(repository, max_length))
    token_types = read_manifest(repository).token_types
    checks = make_checks(repository / "tokenizer/1/tokenizer.json", profiles, token_types=token_types)
    expected = expected_logits(padded_graph(repository / "cross_encoder/1"), checks)
    found = [session.run(None, packed(check))[0] for check in checks]
    return max(float(np.abs(got - want).max()) for got, want in zip(found, expected, strict=True))


def test_every_family_gives_the_logits_of_the_cpu(tiny, make_session, record_property):
    record_property("worst_difference", difference := worst_difference(tiny, make_session(tiny)))
    assert difference <= 2e-2


def test_the_demo_reranker_gives_the_logits_of_the_cpu(demo, make_session, record_property):
    record_property("worst_difference", difference := worst_difference(demo, make_session(demo)))
    assert difference <= 2e-2


def test_what_is_fused_on_cuda(demo, make_session, tmp_path, record_property):
    make_session(demo, optimized_model_filepath=str(tmp_path / "fused.onnx"))
    graph = onnx.load(tmp_path / "fused.onnx", load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    record_property("operators", dict(operators))
    assert operators["Erf"] == 0
    assert operators["BiasGelu"] + operators["Gelu"] == 12
    assert operators["SkipLayerNormalization"] >= 24


def test_the_largest_batch_takes_what_the_arithmetic_says(demo, make_session, record_property):
    session = make_session(demo)
    ids = np.full((64, 512), 7, np.int32)
    session.run(None, join([Batch("rows", ids[:1, :16], np.ones_like(ids[:1, :16]))]))
    free, _ = torch.cuda.mem_get_info()
    session.run(None, join([Batch("rows", ids, np.ones_like(ids))]))
    taken = free - torch.cuda.mem_get_info()[0]
    shape = Shape(num_parameters=0, hidden_size=384, num_heads=12, intermediate_size=1536)
    record_property("bytes_taken", taken)
    record_property("bytes_computed", batch_bytes(shape, 64 * 512))
    assert taken <= 1.2 * batch_bytes(shape, 64 * 512)


def test_speed(demo, make_session, record_property):
    session = make_session(demo)
    for num_pairs, length in ((64, 128), (64, 512)):
        ids = np.full((num_pairs, length), 7, np.int32)
        feed = join([Batch("rows", ids, np.ones_like(ids))])
        for _ in range(3):
            session.run(None, feed)
        started = time.perf_counter()
        for _ in range(20):
            session.run(None, feed)
        seconds = (time.perf_counter() - started) / 20
        record_property(f"tokens_per_s_{num_pairs}x{length}", round(num_pairs * length / seconds))
