"""Options of the server connection, and the client that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from triton_rerank.cli.values import seconds
from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError, ModelNotFoundError, RerankError
from triton_rerank.ranking.cascade import FIRST_STAGE
from triton_rerank.transport.connection import TLS

ENSEMBLES = ("reranker", "late_interaction")
"""Names of the ensembles in the committed model repository."""


def connection_options(*, many_models: bool = False, timeout: float = 60.0) -> argparse.ArgumentParser:
    """A parent parser with the server's options.

    Args:
        many_models: Whether --model may be repeated.
        timeout: Default of --timeout.
    """
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("server")
    group.add_argument(
        "--url",
        action="append",
        metavar="HOST:PORT",
        help="Triton's gRPC endpoint; repeat it for several ($TRITON_RERANK_URL, localhost:8001)",
    )
    if many_models:
        group.add_argument(
            "--model", action="append", metavar="MODEL", help="name of the ensemble; repeatable (reranker)"
        )
    else:
        group.add_argument("--model", default="reranker", help="name of the ensemble (%(default)s)")
    group.add_argument("--timeout", type=seconds, default=timeout, metavar="SECONDS", help="of each call (%(default)g)")
    group.add_argument("--tls", action="store_true", help="encrypt, trusting the root certificates that gRPC bundles")
    group.add_argument("--tls-ca", metavar="PEM", help="root certificates to trust")
    group.add_argument("--tls-key", metavar="PEM", help="this client's key")
    group.add_argument("--tls-cert", metavar="PEM", help="this client's certificate chain")
    group.add_argument(
        "--header", action="append", default=[], metavar="'KEY: VALUE'", help="gRPC metadata; repeatable"
    )
    group.add_argument("--compression", choices=("gzip", "deflate"), help="of requests")
    return options


def make_client(options: argparse.Namespace, *, model: str | None = None, timeout: float | None = None) -> RerankClient:
    """A client for the options.

    Args:
        options: Parsed options.
        model: Instead of --model.
        timeout: Instead of --timeout.

    Raises:
        InvalidRequestError: An option is unusable.
    """
    settings = client_settings(options)
    if model is not None:
        settings["model"] = model
    if timeout is not None:
        settings["timeout"] = timeout
    return RerankClient(**settings)


def client_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of a client for the options.

    Raises:
        InvalidRequestError: An option is unusable.
    """
    metadata = {}
    for header in options.header:
        key, colon, value = header.partition(":")
        if not colon:
            raise InvalidRequestError("--header must be 'key: value'")
        metadata[key.strip().lower()] = value.strip()
    tls: TLS | bool = options.tls
    if options.tls_ca or options.tls_key or options.tls_cert:
        tls = TLS(options.tls_ca, options.tls_key, options.tls_cert)
    return {
        "url": options.url,
        "model": options.model if isinstance(options.model, str) else options.model[0],
        "timeout": options.timeout,
        "tls": tls,
        "metadata": metadata,
        "compression": options.compression,
    }


@contextmanager
def connected(options: argparse.Namespace, *, timeout: float | None = None) -> Iterator[RerankClient]:
    """A client for the options. Errors about a wrong --model name the ensembles that the server has.

    Args:
        options: Parsed options.
        timeout: Instead of --timeout.
    """
    with make_client(options, timeout=timeout) as client:
        try:
            yield client
        except RerankError as error:
            if (remedy := _model_remedy(options, client.model, error)) is None:
                raise
            raise type(error)(f"{error}; {remedy}") from error


def _model_remedy(options: argparse.Namespace, model: str, error: RerankError) -> str | None:
    if f"{FIRST_STAGE}: " in str(error):
        return "check --cascade-first, or give --cascade-fallback" if isinstance(error, ModelNotFoundError) else None
    if isinstance(error, ModelNotFoundError):
        problem = ""
    # Triton's and the client's messages for a model that is not an ensemble.
    elif any(words in str(error) for words in ("unexpected inference ", "is not a reranker", "is not an ensemble")):
        problem = f"{model} is not an ensemble; "
    else:
        return None
    served = [name for name in ENSEMBLES if name != model and _is_served(options, name)]
    return f"{problem}use --model {' or --model '.join(served)}" if served else f"{problem}check --model"


def _is_served(options: argparse.Namespace, model: str) -> bool:
    with suppress(RerankError), make_client(options, model=model, timeout=min(options.timeout, 5.0)) as client:
        client.model_info()
        return True
    return False
