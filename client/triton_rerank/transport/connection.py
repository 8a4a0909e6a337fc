"""Where and how to connect: addresses, TLS, metadata. Checked when a client is made; no message shows a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.validation import MAX_MESSAGE_BYTES, kind_of

Pem = bytes | str | os.PathLike[str]
"""PEM text as bytes or str, or the path of a file that holds it."""

MetadataSource = Mapping[str, str | bytes] | Callable[[], Mapping[str, str | bytes]]
"""Metadata of every request, or a function called at each call (for tokens that change). Keys that end in "-bin" have
bytes as values."""

Channel = Any
Stub = Any
"""Triton's RPCs on a channel, such as `stub.ModelInfer`. gRPC and tritonclient ship no annotations."""
Rpc = Any
"""A gRPC call in flight."""
Message = Any
"""A protobuf message of Triton's service."""

ROUND_ROBIN = '{"loadBalancingConfig":[{"round_robin":{}}]}'
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # that gRPC reads, whether TLS is on or not


@dataclass(frozen=True, slots=True)
class TLS:
    """Encryption, and how the client identifies itself.

    Certificates and keys are PEM text (bytes or str) or paths of PEM files. Without `root_certificates` the roots that
    gRPC bundles are trusted, not the operating system's; the environment variable GRPC_DEFAULT_SSL_ROOTS_FILE_PATH
    names others. A `private_key` and its `certificate_chain` go together (mutual TLS). `server_name` is the name in
    the server's certificate where it differs from the address.
    """

    root_certificates: Pem | None = None
    private_key: Pem | None = field(default=None, repr=False)
    certificate_chain: Pem | None = None
    server_name: str | None = None

    def __repr__(self) -> str:
        names = ("root_certificates", "private_key", "certificate_chain", "server_name")
        return f"TLS({', '.join(f'{name}=...' for name in names if getattr(self, name) is not None)})"

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Roots, key and chain as PEM bytes.

        Raises:
            InvalidRequestError: A file cannot be read or is not PEM, or key and chain are not both given.
        """
        if (self.private_key is None) != (self.certificate_chain is None):
            raise InvalidRequestError("tls needs private_key and certificate_chain together, or neither")
        if self.server_name is not None and not isinstance(self.server_name, str):
            raise InvalidRequestError(f"tls.server_name is {kind_of(self.server_name)}; pass a host name")
        return (
            _pem(self.root_certificates, "root_certificates"),
            _pem(self.private_key, "private_key"),
            _pem(self.certificate_chain, "certificate_chain"),
        )


def is_pem(value: Pem) -> bool:
    """Whether a value is PEM text itself, not the path of a file."""
    return isinstance(value, bytes) or (isinstance(value, str) and "-----BEGIN" in value)


def _pem(value: Pem | None, name: str) -> bytes | None:
    """PEM text. Errors never show the value: it may be a key that was meant as text."""
    if value is None:
        return None
    if not isinstance(value, (bytes, str, os.PathLike)):
        raise InvalidRequestError(f"tls.{name} is {kind_of(value)}; pass PEM text or the path of a PEM file")
    if isinstance(value, bytes):
        text = value
    elif isinstance(value, str) and is_pem(value):
        text = value.encode()
    else:
        try:
            with open(value, "rb") as file:
                text = file.read()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            raise InvalidRequestError(f"tls.{name} is neither PEM text nor a file that can be read: {reason}") from None
    if b"-----BEGIN" not in text:
        raise InvalidRequestError(f"tls.{name} holds no PEM block (-----BEGIN ...)")
    return text


def check_urls(url: str | Sequence[str] | None) -> tuple[str, ...]:
    """The addresses in `url`: "host:port", a list of them, or "dns:///name:port".

    None stands for $TRITON_RERANK_URL, addresses separated by commas, or localhost:8001. Blanks, a leading "http://"
    and a missing port (8001) are put right.
    """
    if url is None:
        url = os.environ.get("TRITON_RERANK_URL", "").split(",")
        url = [address for address in url if address.strip()] or "localhost:8001"
    urls = (url,) if isinstance(url, str) else tuple(url)
    if not urls:
        raise InvalidRequestError("url is an empty list; pass at least one host:port")
    return tuple(_check_url(address) for address in urls)


def _check_url(address: object) -> str:
    if not isinstance(address, str):
        raise InvalidRequestError(f"url is not text (got {kind_of(address)}); pass host:port")
    stripped = address.strip()
    if re.match("(?i)(https|grpcs)://", stripped):
        raise InvalidRequestError("url has no scheme; pass host:port of Triton's gRPC endpoint, and tls=True")
    stripped = re.sub("(?i)^(http|grpc)://", "", stripped).removesuffix("/")
    found = re.fullmatch(r"((?:dns:///|ipv4:|ipv6:)?(?:\[[0-9a-fA-F:.%]+\]|[^\s/@\[\]:,]+))(?::(\d{1,5}))?", stripped)
    if found is None:
        shown = "it" if "@" in address else repr(address)
        more = '; pass several as a list: ["a:8001", "b:8001"]' if "," in address else ""
        raise InvalidRequestError(
            f"url must be host:port of Triton's gRPC endpoint, such as localhost:8001; {shown} is not{more}"
        )
    host, port = found[1], found[2] or "8001"
    if not 1 <= int(port) <= 65535:
        raise InvalidRequestError(f"url has port {port}; ports are 1 to 65535")
    return f"{host}:{port}"


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = url.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
    return host == "localhost" or host == "::1" or host.startswith("127.")


def through_proxy(url: str) -> bool:
    """Whether the environment may send the connection to a server through an HTTP proxy."""
    return not is_loopback(url) and any(os.environ.get(name) for name in _PROXY_VARIABLES)


def check_metadata(metadata: Mapping[str, str | bytes]) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata as pairs, keys in lower case. Bad values are refused here, unquoted: gRPC would quote them."""
    if not isinstance(metadata, Mapping):
        raise InvalidRequestError(f"metadata is not a mapping (got {kind_of(metadata)}); pass {{key: value}}")
    pairs: list[tuple[str, str | bytes]] = []
    for given, value in metadata.items():
        key = given.lower() if isinstance(given, str) else ""
        if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
            raise InvalidRequestError(f"metadata key {given!r} must be letters, digits, '_', '-' or '.', not grpc-...")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise InvalidRequestError(f"metadata[{key!r}] must be bytes, as its name ends in -bin")
        elif not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise InvalidRequestError(f"metadata[{key!r}] must be printable ASCII text")
        pairs.append((key, value))
    return tuple(pairs)


def sends_token_in_plain_text(
    urls: Sequence[str], tls: TLS | None, metadata: Sequence[tuple[str, str | bytes]]
) -> bool:
    """Whether metadata holds credentials that would travel unencrypted to another machine."""
    return (
        tls is None
        and any(key in ("authorization", "proxy-authorization", "x-api-key") for key, _ in metadata)
        and not all(map(is_loopback, urls))
    )


def target_of(url: str) -> str:
    """What gRPC is asked to connect to.

    "localhost" stands for 127.0.0.1 alone: Triton listens on IPv4, and after a failure gRPC tells the error of one
    address, by chance that of ::1.
    """
    return f"ipv4:127.0.0.1:{url.rpartition(':')[2]}" if _is_localhost(url) else url


def _is_localhost(url: str) -> bool:
    return url.lower().startswith("localhost:")


def channel_options(url: str, tls: TLS | None = None) -> list[tuple[str, int | str]]:
    """Settings of the channel to one server.

    A server that comes back should be found within seconds, so the pause between attempts to connect ends at
    2 s (gRPC: 120 s), and an address that does not answer is given up after 5 s (gRPC: 20 s).

    With requests in flight and no answer for 60 s, a keepalive ping finds a frozen server or a dropped connection; it
    also sets TCP_USER_TIMEOUT, which finds lost machines within 20 s of unacknowledged data. Triton's defaults
    tolerate two pings in 300 s of silence (--grpc-http2-max-ping-strikes) and none without requests in flight, and
    gRPC sends two pings at most between two requests.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 2),
    ]
    if is_loopback(url):
        options.append(("grpc.enable_http_proxy", 0))
    if url.startswith(("dns:", "ipv4:", "ipv6:")):
        options.append(("grpc.service_config", ROUND_ROBIN))
    if tls is not None and (name := tls.server_name or ("localhost" if _is_localhost(url) else None)):
        options.append(("grpc.ssl_target_name_override", name))
    elif _is_localhost(url):
        options.append(("grpc.default_authority", url))
    return options
