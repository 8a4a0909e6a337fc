"""The reranker behind the gateway: its description, its readiness, and calls that end when their caller hangs up."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from starlette.types import Receive

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.base import ready_pair
from triton_rerank.errors import RerankError, ServerOverloadedError
from triton_rerank.gateway.errors import overloaded, unavailable
from triton_rerank.gateway.reading import CallerGoneError
from triton_rerank.types import Cascade, ModelInfo

logger: logging.Logger = logging.getLogger("triton_rerank.gateway")

_T = TypeVar("_T")
_INFO_AGE_S = 10.0
_READY_AGE_S = 1.0
_PROBE_TIMEOUT_S = 5.0


class Served:
    """One reranker, and the calls that are in flight to it."""

    def __init__(self, client: AsyncRerankClient, max_in_flight: int, cascade: Cascade | None = None) -> None:
        self.client = client
        # A first stage without a fallback is needed for calls, so the probe goes through it.
        self._cascade = None if cascade is None or cascade.fallback else replace(cascade, keep=1)
        self.draining = False
        """Whether the gateway is about to stop: it still serves, but is not ready."""
        self.in_flight: int = 0
        self._max_in_flight = max_in_flight
        self._info: ModelInfo | None = None
        self._info_at = self._ready_at = self._answered_at = -math.inf
        self._ready = False
        self._asking = asyncio.Lock()
        self._probing = asyncio.Lock()

    async def info(self) -> ModelInfo:
        """The reranker's description, at most 10 s old if the reranker answers.

        Raises:
            GatewayError: It was never asked with success, and does not answer now.
        """
        if self._info is not None and (time.monotonic() - self._info_at < _INFO_AGE_S or self._asking.locked()):
            return self._info
        async with self._asking:
            if self._info is None or time.monotonic() - self._info_at >= _INFO_AGE_S:
                try:
                    self._info = await self.client.model_info(timeout=_PROBE_TIMEOUT_S)
                except RerankError as error:
                    if self._info is None:
                        # InvalidRequestError: the operator's --model is not a reranker.
                        raise unavailable(f"{type(error).__name__}: {error}") from error
                self._info_at = time.monotonic()
            return self._info

    async def is_ready(self) -> bool:
        """Whether the reranker scores pairs: a call was answered, or a probe succeeded, within the last second.

        An overloaded reranker is ready: it works, and without it its callers would have nobody to go to.
        """
        if self.draining:
            return False
        async with self._probing:
            now = time.monotonic()
            if now - self._answered_at < _READY_AGE_S:
                return True
            if now - self._ready_at >= _READY_AGE_S:
                before, self._ready = self._ready, await self._probe()
                self._ready_at = time.monotonic()
                if self._ready and not before:
                    logger.info("ready")
            return self._ready

    async def _probe(self) -> bool:
        try:
            query, document = ready_pair()
            await self.client.rerank(query, [document, query], cascade=self._cascade, timeout=_PROBE_TIMEOUT_S)
        except ServerOverloadedError:
            return True
        except RerankError as error:
            if self._ready or self._ready_at == -math.inf:  # once, not with every probe
                logger.warning("not ready: %s: %s", type(error).__name__, error)
            return False
        return True

    async def call(self, work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
        """Await a call to the reranker, and cancel it when the caller closes the connection.

        Raises:
            CallerGoneError: The caller hung up.
            GatewayError: Too many calls are in flight.
        """
        if self.in_flight >= self._max_in_flight:
            work.close()
            raise overloaded(f"{self.in_flight} calls are in flight")
        self.in_flight += 1
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise CallerGoneError
            result = task.result()
            self._answered_at = time.monotonic()
            return result
        finally:
            self.in_flight -= 1
            for each in (task, gone):
                each.cancel()
            with suppress(asyncio.CancelledError, RerankError):
                await task


async def _gone(receive: Receive) -> None:
    """Return when the caller has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
