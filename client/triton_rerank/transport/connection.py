"""Where and how to connect: addresses, TLS, metadata. Checked at once; nothing secret is ever shown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.validation import MAX_MESSAGE_BYTES, kind_of

Pem = bytes | str | os.PathLike[str]
"""PEM text as bytes, or the path of a file that holds it."""

MetadataSource = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Metadata of every request, or a function asked for it at each call (for tokens that change)."""

ROUND_ROBIN = '{"loadBalancingConfig":[{"round_robin":{}}]}'


@dataclass(frozen=True, slots=True)
class TLS:
    """How to encrypt, and how to prove who calls.

    Each value is PEM as bytes or the path of a PEM file. Without `root_certificates` gRPC's own roots are
    trusted. A `private_key` and its `certificate_chain` go together (mutual TLS).
    """

    root_certificates: Pem | None = None
    private_key: Pem | None = field(default=None, repr=False)
    certificate_chain: Pem | None = None

    def __repr__(self) -> str:
        given = [
            name
            for name in ("root_certificates", "private_key", "certificate_chain")
            if getattr(self, name) is not None
        ]
        return f"TLS({', '.join(f'{name}=...' for name in given)})"

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Roots, key and chain as PEM bytes.

        Raises:
            InvalidRequestError: A file cannot be read, or key and chain are not both given.
        """
        if (self.private_key is None) != (self.certificate_chain is None):
            raise InvalidRequestError("tls needs private_key and certificate_chain together, or neither")
        return (
            _pem(self.root_certificates, "root_certificates"),
            _pem(self.private_key, "private_key"),
            _pem(self.certificate_chain, "certificate_chain"),
        )


def _pem(value: Pem | None, name: str) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    try:
        with open(value, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidRequestError(f"tls.{name}: {error.strerror} ({os.fspath(value)})") from None


def check_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses in `url`: "host:port", a list of them, or "dns:///name:port"."""
    urls = (url,) if isinstance(url, str) else tuple(url)
    if not urls:
        raise InvalidRequestError("url is an empty list; pass at least one host:port")
    for address in urls:
        if not isinstance(address, str):
            raise InvalidRequestError(f"url is not text (got {kind_of(address)}); pass host:port")
        if not re.fullmatch(r"(dns:///|ipv4:|ipv6:)?(\[[0-9a-fA-F:.%]+\]|[^\s/@\[\]:]+):\d{1,5}", address):
            shown = "it" if "@" in address else repr(address)
            raise InvalidRequestError(
                f"url must be host:port of Triton's gRPC endpoint, such as localhost:8001; {shown} is not"
            )
    return urls


def check_metadata(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Metadata as pairs. A bad value is refused here, unquoted: gRPC would show it in its own error."""
    pairs = []
    for key, value in metadata.items():
        if not isinstance(key, str) or not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
            raise InvalidRequestError(f"metadata key {key!r} must be lower-case letters, digits, '_', '-' or '.'")
        if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise InvalidRequestError(f"metadata[{key!r}] must be printable ASCII")
        pairs.append((key, value))
    return tuple(pairs)


def channel_options(url: str) -> list[tuple[str, int | str]]:
    """Settings of the channel to one server.

    A server that comes back should be found within seconds, so the pause between attempts to connect ends at
    2 s (gRPC: 120 s), and an address that does not answer is given up after 5 s (gRPC: 20 s).
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if url.startswith(("dns:", "ipv4:", "ipv6:")):
        options.append(("grpc.service_config", ROUND_ROBIN))
    return options
