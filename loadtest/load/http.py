"""Calls over HTTP through a gateway, with the client's errors."""

from __future__ import annotations

from collections.abc import Sequence

import requests

from triton_rerank import (
    InferenceError,
    InvalidRequestError,
    RequestTimeoutError,
    ServerOverloadedError,
    ServerUnavailableError,
)

_ERRORS = {429: ServerOverloadedError, 500: InferenceError, 503: ServerUnavailableError, 504: RequestTimeoutError}


class GatewayClient:
    """As much of `RerankClient` as the load test needs. Locust has patched the sockets of requests for gevent."""

    def __init__(self, url: str, *, timeout: float, connections: int) -> None:
        self._url = f"{url.rstrip('/')}/v1/rerank"
        self._timeout = timeout
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between load and server
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=connections)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def rerank(self, query: str, documents: Sequence[str]) -> int:
        """Rank documents.

        Returns:
            The number of results.

        Raises:
            RerankError: As the client's for the same cause.
        """
        return len(self.scores(query, documents))

    def scores(self, query: str, documents: Sequence[str]) -> dict[int, float]:
        """As `rerank`; the relevance score of each document by its index."""
        body = {"query": query, "documents": documents}
        try:
            answer = self._session.post(self._url, json=body, timeout=self._timeout)
        except requests.Timeout as error:
            raise RequestTimeoutError(str(error)) from error
        except requests.RequestException as error:
            raise ServerUnavailableError(str(error)) from error
        if not answer.ok:
            raise _ERRORS.get(answer.status_code, InvalidRequestError)(answer.text[:200])
        return {result["index"]: result["relevance_score"] for result in answer.json()["results"]}
