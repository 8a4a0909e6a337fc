import time
from itertools import pairwise

import pytest

from triton_rerank import (
    InferenceError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from triton_rerank.transport.exchange import Exchange
from triton_rerank.transport.retry import Deadline, RetryBudget, backoff_s, gone_backoff_s
from triton_rerank.transport.servers import Servers


class Course(Exchange):
    def answered(self, attempt, now=0.0):
        super().answered(attempt, now)


DOWN, FULL = ServerUnavailableError("down"), ServerOverloadedError("full")


def exchange(
    count=1,
    *,
    servers=1,
    timeout=None,
    max_retries=2,
    budget=None,
    begun=True,
    backoff=lambda retries: 1.0,
    priority=None,
):
    return Course(
        count,
        servers=servers if isinstance(servers, Servers) else Servers([f"s{n}" for n in range(servers)]),
        deadline=Deadline.after(timeout, 0.0),
        budget=budget or RetryBudget(),
        max_retries=max_retries,
        most_running=16,
        priority=priority,
        begun=begun,
        backoff=backoff,
        gone_backoff=backoff,
    )


def test_a_call_opens_with_its_last_request_and_sends_the_others_when_it_is_answered():
    course = exchange(3, begun=False)
    (opening,) = course.due(0.0)
    assert (opening.index, opening.begun) == (2, False)
    assert course.due(0.0) == []
    assert course.wait_s(0.0) is None
    course.answered(opening)
    assert [(attempt.index, attempt.begun) for attempt in course.due(1.0)] == [(0, True), (1, True)]


def test_an_opening_that_is_refused_is_tried_again_alone():
    course = exchange(3, begun=False, max_retries=1)
    (opening,) = course.due(0.0)
    course.failed(opening, FULL, 0.0)
    assert course.due(1.0) == [opening]
    with pytest.raises(ServerOverloadedError):
        course.failed(opening, FULL, 1.0)
    assert course.num_sent == 2


def test_requests_of_a_begun_call_are_due_at_once_and_waited_for_without_end():
    course = exchange(3)
    attempts = course.due(0.0)
    assert sorted(attempt.index for attempt in attempts) == [0, 1, 2]
    assert course.due(0.0) == []
    assert course.wait_s(0.0) is None
    for attempt in attempts:
        assert not course.finished
        course.answered(attempt)
    assert course.finished


def test_only_the_failed_part_is_sent_again_after_its_backoff():
    course = exchange(3)
    first, second, third = course.due(0.0)
    course.answered(first)
    course.failed(second, FULL, 0.5)
    course.answered(third)
    assert course.due(1.0) == []
    assert course.wait_s(1.0) == pytest.approx(0.5)
    (again,) = course.due(1.5)
    assert again is second
    course.answered(again)
    assert course.finished
    assert course.num_sent == 4


def test_a_call_larger_than_the_queue_goes_on_with_as_many_as_it_takes():
    course = exchange(3, max_retries=1)
    first, second, third = course.due(0.0)
    course.failed(third, FULL, 0.0)
    assert course.due(5.0) == []  # two run, no more
    assert course.wait_s(5.0) is None
    course.answered(first)
    assert course.due(5.0) == [third]
    course.failed(third, FULL, 6.0)  # not the one retry that it has
    course.answered(second)
    assert course.due(7.0) == [third]
    course.failed(third, FULL, 7.0)  # nothing else runs: this is the one
    assert course.due(8.0) == [third]
    with pytest.raises(ServerOverloadedError):
        course.failed(third, FULL, 8.0)


def test_without_retries_a_refusal_ends_the_call():
    course = exchange(2, max_retries=0)
    with pytest.raises(ServerOverloadedError):
        course.failed(course.due(0.0)[0], FULL, 0.0)


def test_retries_of_a_refused_request_end():
    course = exchange(max_retries=2)
    for now in (0.0, 1.0):
        course.failed(course.due(now)[0], FULL, now)
    with pytest.raises(ServerOverloadedError, match="full"):
        course.failed(course.due(2.0)[0], FULL, 2.0)


def test_a_server_that_has_never_answered_is_retried_for_10_s_and_no_longer():
    course, now = exchange(max_retries=1, backoff=lambda retries: 3.0), 1.0
    for expected in (1.0, 4.0, 7.0, 10.0):
        assert now == expected
        course.failed(course.due(now)[0], DOWN, now)
        now += course.wait_s(now)
    assert now == 11.0
    (attempt,) = course.due(now)
    with pytest.raises(ServerUnavailableError, match="down"):
        course.failed(attempt, DOWN, now)


@pytest.mark.parametrize(("timeout", "until"), [(60.0, 58.0), (None, 301.0), (600.0, 301.0)])
def test_a_server_that_has_answered_is_retried_within_the_deadline_for_300_s_at_most(timeout, until):
    servers = Servers(["a"])
    servers.answered(0, now=0.0)
    course, now = exchange(servers=servers, timeout=timeout, backoff=lambda retries: 3.0), 1.0
    with pytest.raises(ServerUnavailableError, match="down"):  # noqa: PT012  # which retry is the last is the question
        while True:
            course.failed(course.due(now)[0], DOWN, now)
            now += course.wait_s(now)
    assert now == until


def test_a_deadline_that_passes_between_two_retries_names_the_servers_that_are_gone():
    course = exchange(servers=2, timeout=10.0, backoff=lambda retries: 4.0)
    for now in (0.0, 0.0, 4.0, 4.0):
        course.failed(course.due(now)[0], DOWN, now)
    assert course.wait_s(4.0) == 4.0
    with pytest.raises(ServerUnavailableError, match="none of 2 servers answers: down; down"):
        course.due(10.1)


def test_without_retries_a_server_that_is_gone_ends_the_call():
    course = exchange(max_retries=0)
    with pytest.raises(ServerUnavailableError):
        course.failed(course.due(0.0)[0], DOWN, 0.0)


def test_retries_of_a_server_that_is_gone_need_no_budget():
    budget = RetryBudget()
    while budget.charge():
        pass
    course = exchange(budget=budget)
    course.failed(course.due(0.0)[0], DOWN, 0.0)
    assert len(course.due(1.0)) == 1


def test_backoff_of_a_server_that_is_gone_grows_from_a_fifth_of_a_second_to_5():
    assert [gone_backoff_s(n, chance=1.0) for n in (0, 1, 4, 5, 60)] == pytest.approx([0.2, 0.4, 3.2, 5.0, 5.0])
    assert gone_backoff_s(0, chance=0.0) == pytest.approx(0.1)


def test_an_attempt_ends_early_if_another_server_could_answer():
    servers = Servers(["a", "b"])
    course = exchange(servers=servers, timeout=60.0)
    (first,) = course.due(0.0)
    silent = first.server
    assert first.limit_s == 10.0  # no answer has been seen yet
    course.failed(first, RequestTimeoutError("Deadline Exceeded"), 10.0)
    (second,) = course.due(10.0)
    assert (second.server, second.limit_s) == (1 - silent, None)
    course.answered(second, 10.1)
    assert course.finished
    # The silent server rests; the next call goes to the other one.
    assert {servers.pick(10.15) for _ in range(4)} == {second.server}


def test_patience_follows_the_slowest_answer_and_is_short_with_a_server_that_failed():
    servers = Servers(["a", "b"])
    for server in (0, 1):
        servers.answered(server, now=0.0, took_s=0.01)
    assert servers.patience_s(0, 0.0, {0}, quick=False) == 5.0
    servers.answered(0, now=0.0, took_s=2.0)
    assert servers.patience_s(0, 0.0, {0}, quick=False) == pytest.approx(40.0)
    assert servers.patience_s(0, 0.0, {0, 1}, quick=False) is None  # the last one gets all the time
    servers.unreachable(1, now=0.0)
    assert servers.patience_s(1, 1.0, {1}, quick=False) == pytest.approx(8.0)


def test_half_of_the_time_is_kept_for_the_other_server():
    (attempt,) = exchange(servers=2, timeout=3.0).due(0.0)
    assert attempt.limit_s == 1.5


def test_a_slow_server_that_answers_others_does_not_rest():
    servers = Servers(["a", "b"])
    course = exchange(servers=servers, timeout=60.0)
    (attempt,) = course.due(0.0)
    slow = attempt.server
    servers.answered(slow, now=5.0)
    course.failed(attempt, RequestTimeoutError("Deadline Exceeded"), 10.0)
    assert course.due(10.0)[0].server == 1 - slow
    assert servers.has_other(10.0, tried={1 - slow})


def test_without_a_timeout_an_attempt_ends_after_300_s():
    (attempt,) = exchange().due(0.0)
    assert attempt.limit_s == 300.0


def test_a_timeout_names_the_server_that_answered_nothing():
    course = exchange(timeout=30.0)
    (attempt,) = course.due(0.0)
    with pytest.raises(RequestTimeoutError, match=r"s0 answered no request meanwhile; .*model processes are alive"):
        course.failed(attempt, RequestTimeoutError("Deadline Exceeded"), 30.0)


def test_a_queue_that_this_client_fills_itself_is_waited_for():
    servers, budget = Servers(["a"]), RetryBudget()
    first, second = (exchange(servers=servers, budget=budget, begun=False) for _ in range(2))
    (runs,), (refused,) = first.due(0.0), second.due(0.0)
    now = 0.0
    for _ in range(50):  # many more than max_retries, and none is charged
        second.failed(refused, FULL, now)
        now += second.wait_s(now)
        if not (again := second.due(now)):  # one is in flight, so one is what the queue takes
            break
        (refused,) = again
    assert not again
    first.answered(runs, now)
    now += second.wait_s(now)
    assert second.due(now) == [refused]
    assert budget.charge()


def test_a_client_that_runs_nothing_else_takes_a_full_queue_for_overload():
    course = exchange(begun=False, max_retries=1)
    course.failed(course.due(0.0)[0], FULL, 0.0)
    with pytest.raises(ServerOverloadedError):
        course.failed(course.due(1.0)[0], FULL, 1.0)


def test_when_no_server_answers_each_is_named():
    course = exchange(servers=2, max_retries=0)
    (attempt,) = course.due(0.0)
    course.failed(attempt, ServerUnavailableError("s0: refused"), 0.0)
    (attempt,) = course.due(0.0)
    with pytest.raises(ServerUnavailableError, match="none of 2 servers answers: s0: refused; s1: no route"):
        course.failed(attempt, ServerUnavailableError("s1: no route"), 0.0)


def test_other_kinds_are_not_retried():
    course = exchange()
    with pytest.raises(InferenceError):
        course.failed(course.due(0.0)[0], InferenceError("broken"), 0.0)


def test_a_retry_that_would_come_too_late_is_not_waited_for():
    course = exchange(timeout=0.9)
    with pytest.raises(ServerOverloadedError):
        course.failed(course.due(0.0)[0], FULL, 0.0)


def test_a_refusal_at_the_deadline_is_a_timeout():
    course = exchange(timeout=2.0)
    (attempt,) = course.due(0.0)
    with pytest.raises(RequestTimeoutError, match="0 of 1 requests were answered"):
        course.failed(attempt, FULL, 2.0)


def test_the_deadline_covers_waiting_retries():
    course = exchange(timeout=2.0)
    course.failed(course.due(0.0)[0], FULL, 0.5)
    with pytest.raises(RequestTimeoutError):
        course.due(2.0)


def test_grpcs_deadline_tells_how_far_the_call_came():
    course = exchange(3, timeout=1.0)
    first, second, _ = course.due(0.0)
    course.answered(first)
    with pytest.raises(RequestTimeoutError, match="1 of 3 requests"):
        course.failed(second, RequestTimeoutError("Deadline Exceeded"), 1.0)


def test_a_dead_server_costs_neither_time_nor_retries_while_others_stand():
    course = exchange(servers=3, max_retries=0)
    (attempt,) = course.due(0.0)
    seen = [attempt.server]
    for _ in range(2):
        course.failed(attempt, DOWN, 0.0)
        (attempt,) = course.due(0.0)
        seen.append(attempt.server)
    assert sorted(seen) == [0, 1, 2]
    with pytest.raises(ServerUnavailableError):
        course.failed(attempt, DOWN, 0.0)


def test_an_overloaded_server_is_backed_off_from_and_another_asked():
    course = exchange(servers=2)
    (attempt,) = course.due(0.0)
    first = attempt.server
    course.failed(attempt, FULL, 0.0)
    assert course.due(0.5) == []
    (again,) = course.due(1.0)
    assert again.server != first


def test_parts_are_spread_by_turns():
    assert sorted(attempt.server for attempt in exchange(6, servers=3).due(0.0)) == [0, 0, 1, 1, 2, 2]


def test_a_resting_server_is_passed_over_then_probed_by_one_request():
    servers = Servers(["a", "b"])
    servers.unreachable(0, now=0.0)
    assert {servers.pick(0.1) for _ in range(4)} == {1}
    picks = [servers.pick(0.3) for _ in range(4)]
    assert picks.count(0) == 1
    servers.answered(0, now=0.3)
    assert {servers.pick(0.3) for _ in range(4)} == {0, 1}


def test_rests_grow_to_an_end():
    servers, now, probes = Servers(["a", "b"]), 0.0, []
    servers.unreachable(0, now)
    while now < 40:
        now += 0.05
        if servers.pick(now) == 0:
            probes.append(now)
            servers.unreachable(0, now)
    rests = [after - before for before, after in pairwise(probes)]
    assert rests[0] < 0.6
    assert max(rests) == pytest.approx(5.0, abs=0.2)


def test_when_all_rest_one_is_tried_all_the_same():
    servers = Servers(["a", "b"])
    servers.unreachable(0, now=0.0)
    servers.unreachable(1, now=0.0)
    assert servers.pick(0.0) in (0, 1)


def test_failures_that_come_together_count_once():
    servers = Servers(["a", "b"])
    for _ in range(50):
        servers.unreachable(0, now=0.0)
    assert servers.has_other(0.25, tried={1})


def test_backoff_is_full_jitter():
    assert backoff_s(0, chance=1.0) == pytest.approx(0.1)
    assert backoff_s(3, chance=1.0) == pytest.approx(0.8)
    assert backoff_s(30, chance=1.0) == pytest.approx(2.0)
    assert backoff_s(3, chance=0.0) == 0.0
    draws = [backoff_s(1) for _ in range(200)]
    assert 0 <= min(draws) < 0.02
    assert 0.18 < max(draws) <= 0.2


def test_the_budget_stops_retries_while_most_requests_fail():
    budget = RetryBudget()
    assert sum(budget.charge() for _ in range(200)) == 49
    for _ in range(520):
        budget.succeeded()
    assert budget.charge()
    # In a lasting overload, ten successes earn one retry.
    earned = 0
    for _ in range(100):
        for _ in range(10):
            budget.succeeded()
        earned += sum(budget.charge() for _ in range(10))
    assert earned <= 110


def test_an_empty_budget_ends_retries():
    budget = RetryBudget()
    while budget.charge():
        pass
    course = exchange(budget=budget)
    with pytest.raises(ServerOverloadedError):
        course.failed(course.due(0.0)[0], FULL, 0.0)


def test_a_failover_needs_no_budget():
    budget = RetryBudget()
    while budget.charge():
        pass
    course = exchange(servers=2, budget=budget)
    course.failed(course.due(0.0)[0], DOWN, 0.0)
    assert len(course.due(0.0)) == 1


def test_a_queue_that_is_full_at_one_priority_keeps_no_other_call_waiting():
    servers = Servers(["a"])
    bulk = [exchange(servers=servers, priority=3, begun=False) for _ in range(4)]
    for each in bulk:
        (attempt,) = each.due(0.0)
    bulk[-1].failed(attempt, FULL, 0.0)  # three are in the queue, and that is its room
    assert exchange(servers=servers, priority=3, begun=False).due(0.0) == []
    assert len(exchange(servers=servers, priority=1, begun=False).due(0.0)) == 1
    assert len(exchange(servers=servers, begun=False).due(0.0)) == 1


def test_a_long_call_does_not_fill_the_servers_queue_alone():
    course = exchange(100)
    first = course.due(0.0)
    assert len(first) == 16
    assert (course.due(0.0), course.wait_s(0.0)) == ([], None)
    course.answered(first[0])
    assert course.wait_s(0.0) == 0
    assert len(course.due(0.0)) == 1
    course.failed(first[1], FULL, 0.0)  # 15 run, so 15 are what the queue takes
    assert course.due(0.0) == []
    course.answered(first[2])
    assert len(course.due(0.0)) == 1


def test_scheduling_takes_time_in_proportion_to_the_number_of_requests():
    def seconds(count):
        started = time.process_time()
        course = exchange(count)
        while not course.finished:
            course.wait_s(0.0)
            for attempt in course.due(0.0):
                course.answered(attempt)
        return time.process_time() - started

    # 16 times the requests: 256 times the steps if each step went over all that wait.
    assert min(seconds(32_000) for _ in range(3)) < 64 * min(seconds(2_000) for _ in range(5))
