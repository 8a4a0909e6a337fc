"""`triton-rerank gateway`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.cli.connection import client_settings
from triton_rerank.cli.values import CASCADE_FALLBACK, CASCADE_FIRST, CASCADE_KEEP, cascade_of, kept, positive, seconds
from triton_rerank.errors import InvalidRequestError, RerankError

DESCRIPTION = "Serve HTTP in the formats of Cohere, Jina, vLLM, text-embeddings-inference, NVIDIA NIM and Voyage."
EPILOG = """\
Each option of the gateway is an environment variable, too: TRITON_RERANK_GATEWAY_MAX_BODY is --max-body. Several
values are separated by commas. TRITON_RERANK_GATEWAY_API_KEYS holds keys themselves. On SIGTERM the gateway is no
longer ready, serves for --drain seconds more, ends its calls, and stops."""
_PREFIX = "TRITON_RERANK_GATEWAY_"
_MEGABYTE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gateway`."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    group = parser.add_argument_group("gateway")
    variables = {_PREFIX + "API_KEYS"}
    parser.set_defaults(variables=variables)

    def option(name: str, default: object, text: str, **more: Any) -> None:  # noqa: ANN401  # argparse's own
        # argparse passes a default that is text through `type`, as if it stood on the command line.
        variables.add(_variable(name))
        group.add_argument(name, default=_environment(name, default), help=text, **more)

    def many(name: str, metavar: str, text: str) -> None:
        variables.add(_variable(name))
        group.add_argument(name, action="append", metavar=metavar, help=f"{text}; repeatable")

    def flag(name: str, text: str) -> None:
        variables.add(_variable(name))
        set_ = str(_environment(name, "")).lower() in ("1", "true", "yes", "on")
        group.add_argument(name, action="store_true", default=set_, help=text)

    option("--host", "127.0.0.1", "address to listen on (%(default)s)")
    option("--port", 8080, "port to listen on (%(default)s)", type=_port)
    option("--api-key-file", None, "file of accepted API keys, one a line; without keys all are served", metavar="FILE")
    many("--model-alias", "NAME", "further name of the model in /v1/models")
    flag("--strict-model", "refuse requests that name another model; by default any name is served")
    many("--cors-origin", "ORIGIN", "web origin whose pages may call, or *")
    option("--max-body", 32, "largest body of a request (%(default)s)", type=positive, metavar="MEGABYTES")
    option("--max-documents", 1000, "most documents of a request (%(default)s)", type=positive, metavar="N")
    option("--max-in-flight", 256, "most calls at a time; others get 429 (%(default)s)", type=positive, metavar="N")
    option("--body-timeout", 15.0, "for headers, and for a body (%(default)s)", type=seconds, metavar="SECONDS")
    option("--drain", 0.0, "between SIGTERM and the end of listening (%(default)s)", type=float, metavar="SECONDS")
    option(
        "--long-documents",
        "truncate",
        "cut a document that is too long, or score its parts and take the best: %(choices)s (%(default)s)",
        choices=("truncate", "chunk"),
    )
    option("--cascade", None, CASCADE_KEEP, type=kept, metavar="KEEP")
    option("--cascade-first", None, CASCADE_FIRST, metavar="MODEL")
    flag("--cascade-fallback", CASCADE_FALLBACK)
    flag("--caller-limits", "let max_tokens_per_doc set the tokens of a pair, and max_chunks_per_doc split documents")
    option("--max-retries", 0, "after overload; callers retry, too (%(default)s)", type=int, metavar="N")
    option("--ssl-certfile", None, "certificate chain, for HTTPS", metavar="PEM")
    option("--ssl-keyfile", None, "its key", metavar="PEM")


def run(options: argparse.Namespace) -> int:
    """Run `gateway`."""
    from triton_rerank.gateway import Settings, create_app, metadata  # the extra `gateway`
    from triton_rerank.gateway.server import make_server

    settings = Settings(
        api_keys=_api_keys(options.api_key_file),
        model_aliases=_many(options, "--model-alias"),
        strict_model=options.strict_model,
        cors_origins=_many(options, "--cors-origin"),
        max_body=options.max_body * _MEGABYTE,
        max_documents=options.max_documents,
        max_in_flight=options.max_in_flight,
        timeout=options.timeout,
        body_timeout=options.body_timeout,
        long_documents=options.long_documents,
        cascade=cascade_of(options),
        caller_limits=options.caller_limits,
    )
    connection = client_settings(options)
    headers = connection.pop("metadata")
    client = AsyncRerankClient(
        **connection, metadata=lambda: {**headers, **metadata()}, max_retries=options.max_retries
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    scheme = "https" if options.ssl_certfile else "http"

    def started(port: int) -> None:
        shown = f"[{options.host}]" if ":" in options.host else options.host
        where = f"{scheme}://{shown}:{port}"
        print(f"gateway: {where} in front of {client!r}; {where}/docs describes it", file=sys.stderr, flush=True)

    for name in sorted(set(os.environ) - options.variables):
        if name.startswith(_PREFIX):
            print(f"warning: {name} is not an option of the gateway", file=sys.stderr)
    if not settings.api_keys and options.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"warning: no API keys, so all who reach {options.host} are served", file=sys.stderr)
    tls = {"ssl_certfile": options.ssl_certfile, "ssl_keyfile": options.ssl_keyfile}
    make_server(
        create_app(client, settings),
        settings,
        host=options.host,
        port=options.port,
        drain_s=max(0.0, options.drain),
        started=started,
        **tls,
    ).run()
    return 0


def _environment(option: str, default: object) -> object:
    """The value of an option in the environment, else its default."""
    return os.environ.get(_variable(option)) or default


def _variable(option: str) -> str:
    return _PREFIX + option.removeprefix("--").replace("-", "_").upper()


def _many(options: argparse.Namespace, name: str) -> tuple[str, ...]:
    given = getattr(options, name.removeprefix("--").replace("-", "_"))
    if given is None:
        given = str(_environment(name, "")).split(",")
    return tuple(value.strip() for value in given if value.strip())


def _api_keys(path: str | None) -> tuple[str, ...]:
    """The keys of a file and of the environment."""
    keys = [key.strip() for key in os.environ.get(_PREFIX + "API_KEYS", "").split(",") if key.strip()]
    if path is None:
        return tuple(keys)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"--api-key-file {path} is not UTF-8 text") from None
    keys += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:  # else an emptied file would open the gateway to everyone
        raise RerankError(f"--api-key-file {path} holds no key; write one a line")
    return tuple(keys)


def _port(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port") from None
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is not a port; ports are 1 to 65535")
    return number
