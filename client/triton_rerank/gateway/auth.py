"""API keys of callers."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from triton_rerank.gateway.errors import GatewayError


class Keys:
    """The keys that are accepted. Comparison takes the same time for every wrong key."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> None:
        """Refuse a request without one of the keys; without keys all are served.

        Args:
            authorization: The header "Authorization: Bearer KEY".

        Raises:
            GatewayError: 401.
        """
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        # All digests are compared, so that the time does not tell which one fits.
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            problem = "the API key is not valid" if authorization else "an API key is needed"
            message = f"{problem}; send the header 'Authorization: Bearer KEY'"
            headers = {"WWW-Authenticate": "Bearer"}
            raise GatewayError(401, message, "authentication_error", headers=headers)


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
