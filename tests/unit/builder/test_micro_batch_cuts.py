"""Where rows are cut into micro-batches, compared with trying every way of cutting them."""

from itertools import combinations, pairwise
from random import Random

import pytest

from triton_rerank_build.serving.backends.rerank_openvino.micro_batch_cuts import RUN_TOKENS, cut_by_cost, padded_length


def cost(lengths, cuts):
    return sum(RUN_TOKENS + lengths[start] * (end - start) for start, end in cuts)


def allowed(lengths, cuts, max_tokens, max_rows):
    sizes = [(end - start, lengths[start]) for start, end in cuts]
    return all(rows == 1 or (rows * length <= max_tokens and rows <= max_rows) for rows, length in sizes)


def every_way(count):
    for number in range(count):
        for inner in combinations(range(1, count), number):
            yield list(pairwise([0, *inner, count]))


@pytest.mark.parametrize("seed", range(40))
def test_no_other_way_costs_less(seed):
    random = Random(seed)
    lengths = sorted((random.randrange(16, 513, 16) for _ in range(random.randint(1, 9))), reverse=True)
    max_tokens, max_rows = random.choice([256, 1024, 4096]), random.choice([2, 4, 64])
    cuts = cut_by_cost(lengths, max_tokens, max_rows)
    assert allowed(lengths, cuts, max_tokens, max_rows)
    assert [index for start, end in cuts for index in range(start, end)] == list(range(len(lengths)))
    ways = (way for way in every_way(len(lengths)) if allowed(lengths, way, max_tokens, max_rows))
    assert cost(lengths, cuts) == min(cost(lengths, way) for way in ways)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "cuts"),
    [
        ([], 1024, []),
        ([2048], 1024, [(0, 1)]),  # a row beyond the limit is a micro-batch of its own
        ([512] + [16] * 8, 8192, [(0, 1), (1, 9)]),  # 8 * 496 tokens of padding cost more than another run
        ([32, 16], 8192, [(0, 2)]),  # 16 tokens of padding cost less
    ],
)
def test_padding_is_weighed_against_another_run(lengths, max_tokens, cuts):
    assert cut_by_cost(lengths, max_tokens) == cuts


def test_lengths_are_rounded_up_but_not_beyond_what_the_model_takes():
    assert [padded_length(length, 100) for length in (1, 16, 17, 96, 97, 100)] == [16, 16, 32, 96, 100, 100]
