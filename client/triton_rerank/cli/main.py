"""`triton-rerank`: rerank and score from a shell. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any, TextIO

from triton_rerank.cli import evaluate
from triton_rerank.cli.output import document_fields, print_table, progress_bar
from triton_rerank.client import RerankClient
from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.transport.connection import TLS
from triton_rerank.types import DocumentLike

_STREAM_PAIRS = 256  # pairs that `score` reads before it asks: enough to fill requests, few enough to stream


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 after an error, told in one line; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has what it wanted (`| head`). Python would complain once more when it flushes stdout at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (RerankError, UnicodeDecodeError) as error:
        print(f"triton-rerank: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"triton-rerank: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _rerank(options: argparse.Namespace) -> int:
    with _opened(options.file) as file:
        documents = list(_documents(file))
    text_from = options.template if options.template is not None else options.fields
    with _client(options) as client:
        response = client.rerank(
            options.query,
            documents,
            top_n=options.top_n,
            max_length=options.max_length,
            min_relevance_score=options.min_relevance_score,
            long_documents=options.long_documents,
            priority=options.priority,
            text_from=text_from,
        )
    if options.json:
        for result in response:
            print(json.dumps(document_fields(result), ensure_ascii=False, default=str))
    else:
        print_table(response)
    return 0


def _score(options: argparse.Namespace) -> int:
    with _opened(options.file) as file, _client(options) as client, progress_bar("pairs") as advance:
        pairs = _pairs(file)
        while batch := list(islice(pairs, _STREAM_PAIRS)):
            for score in client.score(
                batch, normalize=not options.raw, max_length=options.max_length, priority=options.priority
            ):
                print(
                    json.dumps({"logit" if options.raw else "relevance_score": score})
                    if options.json
                    else f"{score:.6g}"
                )
            sys.stdout.flush()
            advance(len(batch))
    return 0


def _info(options: argparse.Namespace) -> int:
    with _client(options) as client:
        info = asdict(client.model_info())
    if options.json:
        print(json.dumps(info, ensure_ascii=False))
        return 0
    info.pop("manifest")
    for name, value in info.items():
        print(f"{name:20} {'unknown' if value is None else value}")
    return 0


def _ready(options: argparse.Namespace) -> int:
    with _client(options) as client:
        client.score([("ready", "ready")])
    if not options.quiet:
        print("ready")
    return 0


def _client(options: argparse.Namespace) -> RerankClient:
    metadata = {}
    for header in options.header:
        key, colon, value = header.partition(":")
        if not colon:
            raise InvalidRequestError("--header must be 'key: value'")
        metadata[key.strip().lower()] = value.strip()
    tls: TLS | bool = options.tls
    if options.tls_ca or options.tls_key or options.tls_cert:
        tls = TLS(options.tls_ca, options.tls_key, options.tls_cert)
    return RerankClient(
        options.url or os.environ.get("TRITON_RERANK_URL", "localhost:8001").split(","),
        options.model if isinstance(options.model, str) else options.model[0],
        timeout=options.timeout,
        tls=tls,
        metadata=metadata,
        compression=options.compression,
    )


@contextmanager
def _opened(name: str) -> Iterator[TextIO]:
    if name == "-":
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8")
        yield sys.stdin
        return
    with open(name, encoding="utf-8") as file:
        yield file


def _documents(lines: Iterable[str]) -> Iterator[DocumentLike]:
    """Documents, one a line; lines that open with "{" are JSON objects. Blank lines are passed over."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if text.startswith("{"):
            yield _json_object(text, number)
        elif text.strip():
            yield text


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs, one a line: query TAB document, or a JSON object with "query" and "document"."""
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        if text.startswith("{"):
            pair = _json_object(text, number)
            if not isinstance(pair.get("query"), str) or not isinstance(pair.get("document"), str):
                raise InvalidRequestError(f'line {number} needs "query" and "document", both texts')
            yield pair["query"], pair["document"]
        elif text.strip():
            query, tab, document = text.partition("\t")
            if not tab:
                raise InvalidRequestError(f"line {number} has no tab between query and document")
            yield query, document


def _json_object(text: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"line {number} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"line {number} is no JSON object")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-rerank", description="Rerank documents with a cross-encoder served by NVIDIA Triton."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _connection_options()

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, options: argparse.ArgumentParser = common
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[options], help=text, description=text)
        added.set_defaults(run=run)
        return added

    rerank = command("rerank", _rerank, "Order documents by relevance to a query.")
    rerank.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="one document a line, or JSON lines; - is stdin"
    )
    rerank.add_argument("--query", "-q", required=True, help="what was searched for")
    rerank.add_argument("--top-n", "-n", type=int, metavar="N", help="results to print (all)")
    rerank.add_argument("--max-length", type=int, metavar="TOKENS", help="tokens of a pair (the server's default)")
    rerank.add_argument("--min-relevance-score", type=float, metavar="SCORE", help="leave out results below it")
    rerank.add_argument(
        "--long-documents",
        choices=("truncate", "chunk"),
        default="truncate",
        help="cut off, or score in parts (%(default)s)",
    )
    texts = rerank.add_mutually_exclusive_group()
    texts.add_argument("--fields", type=_names, metavar="A,B", help="fields of JSON lines that make the text")
    texts.add_argument("--template", metavar="TEXT", help='template that makes the text: "{title}: {price}"')
    rerank.add_argument("--json", action="store_true", help="one JSON object a line")

    score = command("score", _score, "Score pairs, one a line: query TAB document, or JSON lines.")
    score.add_argument("file", nargs="?", default="-", metavar="FILE", help="- is stdin")
    score.add_argument("--raw", action="store_true", help="logits instead of relevance scores")
    score.add_argument("--max-length", type=int, metavar="TOKENS", help="tokens of a pair (the server's default)")
    score.add_argument("--json", action="store_true", help="one JSON object a line")
    for scoring in (rerank, score):
        scoring.add_argument(
            "--priority", type=int, metavar="N", help="1 goes first where requests wait, 3 is for bulk (the server's)"
        )

    info = command("info", _info, "Tell what the server says of its model.")
    info.add_argument("--json", action="store_true", help="one JSON object, the build's manifest included")
    ready = command("ready", _ready, "Score one pair; exit status 0 if that works, 1 if not.")
    ready.add_argument("--quiet", action="store_true", help="print nothing on success")
    evaluate.add_arguments(
        command("eval", evaluate.run, evaluate.DESCRIPTION, _connection_options(many_models=True)), _client
    )
    return parser


def _connection_options(*, many_models: bool = False) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("server")
    group.add_argument(
        "--url",
        action="append",
        metavar="HOST:PORT",
        help="Triton's gRPC endpoint; repeat it for several ($TRITON_RERANK_URL, localhost:8001)",
    )
    if many_models:
        group.add_argument("--model", action="append", metavar="MODEL", help="ensemble's name; repeatable (reranker)")
    else:
        group.add_argument("--model", default="reranker", help="ensemble's name (%(default)s)")
    group.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for each call (%(default)g)")
    group.add_argument("--tls", action="store_true", help="encrypt, trusting the system's roots")
    group.add_argument("--tls-ca", metavar="PEM", help="roots to trust")
    group.add_argument("--tls-key", metavar="PEM", help="this client's key")
    group.add_argument("--tls-cert", metavar="PEM", help="this client's certificate chain")
    group.add_argument(
        "--header", action="append", default=[], metavar="'KEY: VALUE'", help="gRPC metadata; repeatable"
    )
    group.add_argument("--compression", choices=("gzip", "deflate"), help="of requests")
    return options


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]
