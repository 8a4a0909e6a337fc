"""Behaviour specific to the asyncio client: cancellation, concurrency, event loops."""

import asyncio
import threading
import time

import grpc
import pytest

from support.fake_triton import FakeTriton, hang, refuse
from triton_rerank import AsyncRerankClient, RequestCancelledError, RerankError


@pytest.fixture
def server():
    with FakeTriton(workers=64) as running:
        yield running


async def until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


async def test_a_cancelled_call_cancels_its_requests_on_the_server(server):
    async with AsyncRerankClient(server.url) as client:
        await client.rerank("q", ["1"])
        server.requests.clear()
        server.faults.extend([None, *[hang(20)] * 3])
        call = asyncio.ensure_future(client.rerank("q", ["x"] * 100))
        await until(lambda: len(server.requests) == 4)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: server.cancelled == 3)
        assert (await client.rerank("q", ["1"]))[0].logit == 1.0


async def test_a_timeout_from_outside_cancels_as_well(server):
    async with AsyncRerankClient(server.url) as client:
        await client.rerank("q", ["1"])
        server.faults.append(hang(20))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.rerank("q", ["1"]), 0.3)
        await until(lambda: server.cancelled == 1)


async def test_a_cancelled_rerank_many_leaves_nothing_running(server):
    async with AsyncRerankClient(server.url) as client:
        await client.rerank("q", ["1"])
        server.faults.extend([hang(20)] * 8)
        call = asyncio.ensure_future(client.rerank_many([("q", ["1"])] * 100, concurrency=8))
        await until(lambda: len(server.requests) == 9)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: server.cancelled == 8)
        assert len(server.requests) == 9


async def test_rerank_many_keeps_its_concurrency(server):
    running, most, lock = 0, 0, threading.Lock()
    four, five = threading.Event(), threading.Event()

    def hold(request, context):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running > 4:
                five.set()
            elif running == 4 and not four.is_set():
                threading.Thread(target=lambda: five.wait(0.1) or four.set()).start()
        assert four.wait(10)
        with lock:
            running -= 1

    async with AsyncRerankClient(server.url) as client:
        server.faults.extend([hold] * 40)
        await client.rerank_many([("q", ["1"])] * 40, concurrency=4)
    assert most == 4


async def test_concurrent_calls_do_not_wait_for_each_other(server):
    async with AsyncRerankClient(server.url) as client:
        await client.rerank("q", ["1"])
        all_there = threading.Barrier(32)

        def meet(request, context):
            all_there.wait(30)  # raises unless all 32 requests are in flight at once

        server.faults.extend([meet] * 32)
        await asyncio.gather(*(client.rerank("q", ["1"]) for _ in range(32)))


async def test_a_closed_client_says_so(server):
    client = AsyncRerankClient(server.url)
    await client.rerank("q", ["1"])
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.rerank("q", ["1"])


async def test_closing_ends_calls_under_way(server):
    server.faults.append(hang(20))
    client = AsyncRerankClient(server.url)
    call = asyncio.ensure_future(client.rerank("q", ["1"]))
    await until(lambda: server.requests)
    await client.close()
    with pytest.raises(RequestCancelledError):
        await call


def test_one_client_serves_one_loop_after_another(server):
    client = AsyncRerankClient(server.url)
    for _ in range(3):
        assert asyncio.run(client.rerank("q", ["1", "2"]))[0].document == "2"
    asyncio.run(client.close())


async def test_two_open_loops_need_two_clients(server):
    client = AsyncRerankClient(server.url)
    await client.rerank("q", ["1"])

    def elsewhere():
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(client.rerank("q", ["1"]))

    await asyncio.to_thread(elsewhere)
    await client.close()


async def test_a_failure_inside_gather_leaves_the_others(server):
    server.faults.append(refuse(grpc.StatusCode.INTERNAL, "broken"))
    async with AsyncRerankClient(server.url) as client:
        results = await asyncio.gather(*(client.rerank("q", ["1"]) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, RerankError) for result in results) == 1
