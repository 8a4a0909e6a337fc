"""The loss of a cascade, read from evaluations, and the last line of its benchmark."""

import pytest

from benchmarks.cascade import Pass, Round, loss, result


def summary(largest, **ndcg):
    systems = {name.replace("_", "-"): {"mean": {"nDCG@10": value}} for name, value in ndcg.items()}
    return {"pool": {"largest": largest}, "systems": systems}


@pytest.mark.parametrize(("largest", "points"), [(100, 3.0), (101, -1.0)])
def test_the_loss_is_that_of_the_cascade_for_as_many_candidates(largest, points):
    assert loss(summary(largest, reranker=0.9, cascade_20=0.87, cascade_100=0.91)) == pytest.approx(points)


def test_the_line_holds_median_ratios_and_the_largest_loss():
    def one(known_s):
        return Round(Pass(10, 20, 500), Pass(9, 18, 90), Pass(known_s, known_s, 90), Pass(1, 1, 500))

    line = result({1000: [one(2), one(1), one(1)], 100: [one(2)]}, {"a": -0.5, "b": 0.25})
    assert line == (
        "RESULT time_ratio_1000=0.100 ndcg_loss_max=0.25 time_ratio_100=0.200 cpu_ratio_1000=0.050 cpu_ratio_100=0.100"
    )
    assert "ndcg_loss_max=nan" in result({1000: [one(2)], 100: [one(2)]}, {})
