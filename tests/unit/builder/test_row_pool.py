"""The pool of rows of `rerank_openvino`: which requests wait, which are refused, and what runs next."""

import importlib
import sys
import types

import numpy as np
import pytest

from triton_rerank_build.contract import BACKENDS

pytestmark = pytest.mark.timeout(20)  # a pool that is empty waits
MICRO_BATCH = 64


class Sender:
    """Triton's response sender; keeps what is sent."""

    def __init__(self):
        self.sent = []

    def send(self, response, flags):
        self.sent.append(response)

    def is_cancelled(self):
        return False


@pytest.fixture(scope="module")
def row_pool():
    """The module, with the classes of Triton's stub that it sends."""
    triton = types.ModuleType("triton_python_backend_utils")
    triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    triton.Tensor = lambda name, values: (name, values.tolist())
    triton.TritonError = lambda message, code: (message, code)
    triton.TritonError.UNAVAILABLE, triton.TritonError.CANCELLED = 14, 1
    triton.InferenceResponse = lambda tensors=None, error=None: tensors or error
    folder = str(BACKENDS / "rerank_openvino")
    sys.modules["triton_python_backend_utils"] = triton
    sys.path.append(folder)
    try:
        yield importlib.import_module("row_pool")
    finally:
        sys.path.remove(folder)
        for name in ("triton_python_backend_utils", "row_pool", "micro_batch_cuts"):
            sys.modules.pop(name, None)


@pytest.fixture
def pool(row_pool):
    """Takes 2 s of work at 100 tokens/s, besides the largest request."""
    made = row_pool.RowPool(MICRO_BATCH, 512, max_wait_s=2.0, queue_timeout_s=30.0)
    made.ran(100, 1.0)
    return made


@pytest.fixture
def request_of(row_pool):
    """Makes a request with rows of these lengths, which tell the rows apart."""

    def make(*lengths, level=4, timeout_us=0):
        rows = [np.zeros((length, 2), np.int32) for length in lengths]
        return row_pool.PendingRequest(rows, Sender(), timeout_us, level)

    return make


def sent(request):
    return request._sender.sent


def test_a_request_is_refused_beyond_the_seconds_of_work_before_it(pool, request_of):
    assert [pool.add(request_of(50)) for _ in range(6)] == [None] * 6
    assert pool.waiting_s == 3.0
    assert pool.add(request_of(50)) == 3.0
    assert pool.waiting_s == 3.0  # what was refused does not wait


def test_a_slower_processor_makes_the_same_work_longer(pool, request_of):
    assert [pool.add(request_of(150)) for _ in range(3)] == [None] * 3
    for _ in range(50):
        pool.ran(10, 1.0)
    assert pool.waiting_s == pytest.approx(45, rel=0.05)
    assert pool.add(request_of(1)) == pool.waiting_s


def test_a_large_request_may_wait_for_another_and_a_small_one_for_it(pool, request_of):
    assert pool.add(request_of(*[300] * 2)) is None  # 6 s
    assert pool.add(request_of(100)) is None
    assert pool.add(request_of(*[300] * 2)) is None
    assert pool.add(request_of(*[300] * 2)) == 13.0
    assert pool.add(request_of(100)) == 13.0


def test_only_work_that_is_served_first_counts(pool, request_of):
    assert [pool.add(request_of(300, level=6)) for _ in range(3)] == [None, None, 6.0]
    assert [pool.add(request_of(300, level=4)) for _ in range(3)] == [None, None, 6.0]
    assert pool.add(request_of(1, level=2)) is None


def test_a_call_that_has_begun_is_not_refused_where_another_is(pool, request_of):
    assert [pool.add(request_of(400, level=4)) for _ in range(3)] == [None, None, 8.0]
    assert pool.add(request_of(10, level=3)) is None
    # The safeguard: its own level is ten times as full.
    assert [pool.add(request_of(300, level=3)) for _ in range(17)] == [None] * 17
    assert pool.add(request_of(10, level=3)) == pytest.approx(51.1)


def taken(pool):
    """(request, length) of the next micro-batch."""
    return [(request, len(row)) for row, request, _ in pool.take()]


def test_urgent_requests_overtake_and_begun_calls_go_before_others(pool, request_of):
    bulk, usual, urgent, begun = (request_of(64, level=level) for level in (6, 4, 2, 3))
    for request in (bulk, usual, urgent, begun):
        assert pool.add(request) is None
    assert [taken(pool) for _ in range(4)] == [[(request, 64)] for request in (urgent, begun, usual, bulk)]


def test_an_urgent_request_comes_between_the_micro_batches_of_another(pool, request_of):
    bulk = request_of(*[64] * 3, level=6)
    pool.add(bulk)
    assert taken(pool) == [(bulk, 64)]
    urgent = request_of(64, level=2)
    pool.add(urgent)
    assert [taken(pool) for _ in range(3)] == [[(urgent, 64)], [(bulk, 64)], [(bulk, 64)]]


def test_rows_of_similar_length_of_several_requests_run_together(pool, request_of):
    first, second = request_of(16, 60), request_of(16, 16)
    pool.add(first)
    pool.add(second)
    assert taken(pool) == [(first, 60)]
    assert taken(pool) == [(first, 16), (second, 16), (second, 16)]


def test_no_request_waits_for_ever_behind_others_of_other_lengths(pool, request_of):
    long = request_of(60)
    pool.add(request_of(16))
    pool.add(long)
    assert taken(pool)[0][1] == 16
    pool.add(request_of(16))
    assert taken(pool) == [(long, 60)]


def test_a_request_is_answered_once_with_its_rows_in_order(pool, request_of):
    request = request_of(16, 64, 32)
    pool.add(request)
    while not sent(request):
        for row, owner, index in pool.take():
            owner.put(index, len(row))
    assert sent(request) == [[("logits", [[16.0], [64.0], [32.0]])]]
    pool.close()
    assert pool.take() == []


def test_what_waited_too_long_is_refused_and_what_has_begun_goes_on(row_pool, request_of):
    pool = row_pool.RowPool(MICRO_BATCH, 512, max_wait_s=100.0, queue_timeout_s=0.0)
    pool.ran(100, 1.0)
    late = request_of(64)
    pool.add(late)
    pool.close()
    assert pool.take() == []
    assert sent(late) == [("Request timeout expired", 14)]
    begun = request_of(64, 64)
    begun.start_within(60)
    pool._requests.append(begun)
    assert taken(pool) == [(begun, 64)]
    begun.start_within(0)
    assert taken(pool) == [(begun, 64)]


def test_a_request_beyond_its_own_timeout_is_dropped(pool, request_of):
    late, other = request_of(64, timeout_us=1), request_of(64)
    pool.add(late)
    pool.add(other)
    assert taken(pool) == [(other, 64)]
    assert sent(late) == [("Request timeout expired", 14)]


def test_a_request_beyond_its_timeout_keeps_no_other_waiting(pool, request_of):
    assert pool.add(request_of(*[300] * 4, timeout_us=1)) is None
    assert pool.add(request_of(1)) is None
    assert pool.waiting_s == 0.01
