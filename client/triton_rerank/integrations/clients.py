"""The two clients of an adapter component, and TLS settings as plain values."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError
from triton_rerank.transport.connection import TLS, is_pem

CONNECTION_SETTINGS = frozenset({"url", "model", "max_retries", "pairs_per_request", "tls", "metadata", "compression"})

Connect = Callable[[], Mapping[str, Any]]
"""Returns the arguments of a new client."""


class Clients:
    """The clients of one component: the first call opens them, later calls reuse them, one method closes them.

    All threads share one `RerankClient`; each running event loop has an `AsyncRerankClient`. A copied or unpickled
    component starts without clients. A call after closing opens new ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: RerankClient | None = None
        self._async_clients: dict[asyncio.AbstractEventLoop, AsyncRerankClient] = {}

    @property
    def is_open(self) -> bool:
        """Whether a call has opened a connection that is not closed."""
        return self._client is not None or any(not loop.is_closed() for loop in self._async_clients)

    def check_change(self, name: str) -> None:
        """Refuse to change a setting of connections while one is open, which would not follow.

        Raises:
            InvalidRequestError: `name` is such a setting and a connection is open.
        """
        if name in CONNECTION_SETTINGS and self.is_open:
            raise InvalidRequestError(
                f"{name} can't change while connections are open; close them first, or make another component"
            )

    def get(self, connect: Connect) -> RerankClient:
        """The client for threads."""
        with self._lock:
            if self._client is None:
                self._client = RerankClient(**connect())
            return self._client

    def get_async(self, connect: Connect) -> AsyncRerankClient:
        """The client for the event loop that runs now."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._async_clients:
                self._forget_closed_loops()
                self._async_clients[loop] = AsyncRerankClient(**connect())
            return self._async_clients[loop]

    def close(self) -> None:
        """Close the client for threads. Those of event loops still open need `aclose` in their loop."""
        with self._lock:
            client, self._client = self._client, None
            self._forget_closed_loops()
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the client for threads and that of the running event loop."""
        self.close()
        with self._lock:
            client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _forget_closed_loops(self) -> None:
        self._async_clients = {loop: client for loop, client in self._async_clients.items() if not loop.is_closed()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clients)  # open connections are not part of a component's value

    def __hash__(self) -> int:
        return hash(Clients)

    def __reduce__(self) -> tuple[type[Clients], tuple[()]]:
        return Clients, ()


def tls_to_dict(tls: TLS | bool) -> dict[str, str] | bool:
    """`tls` for serialization: the paths of its files. PEM text is left out, since a key is secret."""
    if isinstance(tls, bool):
        return tls
    values = {field.name: getattr(tls, field.name) for field in fields(tls)}
    return {name: os.fspath(pem) for name, pem in values.items() if pem is not None and not is_pem(pem)}
