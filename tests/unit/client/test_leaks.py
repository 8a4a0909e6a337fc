"""Memory, file descriptors and threads do not grow with the number of calls or clients."""

import gc
import time

import psutil
import pytest

from support.fake_triton import FakeTriton

MEGABYTE = 2**20


@pytest.fixture
def server():
    with FakeTriton() as running:
        running.requests = running.metadata = running.timeouts = Forgetful()
        yield running


class Forgetful(list):
    def append(self, value):
        pass


def held():
    gc.collect()
    process = psutil.Process()
    return process.memory_info().rss / MEGABYTE, process.num_fds(), process.num_threads()


@pytest.mark.slow
def test_calls_leave_nothing_behind(client_class, server):
    with client_class(server.url) as client:
        for _ in range(500):
            client.rerank("q", ["1", "2"])
        memory, files, threads = held()
        for _ in range(2500):
            client.rerank("q", ["1", "2"])
        memory_after, files_after, threads_after = held()
    assert memory_after - memory < 8
    assert files_after <= files + 1
    assert threads_after <= threads + 2  # the fake server lives in this process, and its pool may still grow


def test_closed_clients_leave_nothing_behind(client_class, server):
    def use_one():
        with client_class(server.url) as client:
            client.rerank("q", ["1"])

    for _ in range(10):
        use_one()
    _, files, threads = held()
    for _ in range(50):
        use_one()
    end = time.monotonic() + 5
    while held()[1:] > (files + 2, threads + 2) and time.monotonic() < end:
        time.sleep(0.05)  # gRPC closes in the background
    _, files_after, threads_after = held()
    assert files_after <= files + 2
    assert threads_after <= threads + 2
