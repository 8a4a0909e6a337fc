"""The benchmark of batch memory writes graphs that run."""

import pytest

from benchmarks.batch_memory import feed, write_graphs
from triton_rerank_build.graphs.memory import Shape
from triton_rerank_build.parity.compare import cpu_session


@pytest.mark.slow
def test_the_graph_runs_full_rows(tmp_path):
    reference = write_graphs(Shape(0, 32, 4, 64), 1, tmp_path)
    (logits,) = cpu_session(reference).run(None, feed(3, 8))
    assert logits.shape == (3, 1)
