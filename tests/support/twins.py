"""Both clients behind one synchronous interface, so that each test runs on both."""

from __future__ import annotations

import asyncio
import inspect

from triton_rerank import AsyncRerankClient, RerankClient


class _Awaited:
    """An AsyncRerankClient whose coroutines run to completion in an event loop of its own."""

    def __init__(self, *arguments, **options):
        self._client = AsyncRerankClient(*arguments, **options)  # first: it may refuse, and leave no loop open
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name):
        value = getattr(self._client, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *arguments, **options: self._loop.run_until_complete(value(*arguments, **options))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __repr__(self):
        return repr(self._client)


TWINS = {"sync": RerankClient, "async": _Awaited}
