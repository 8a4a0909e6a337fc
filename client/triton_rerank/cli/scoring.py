"""`triton-rerank rerank` and `triton-rerank score`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from triton_rerank.cli.connection import connected
from triton_rerank.cli.inputs import Item, read_documents, read_pairs
from triton_rerank.cli.output import document_fields, print_table, progress_bar
from triton_rerank.cli.values import add_cascade_arguments, cascade_of, positive, share
from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.documents import text_reader

_BATCH_PAIRS = 256  # pairs that `score` reads before it calls: fills requests, and still streams
_INDEX = re.compile(r"\b(?:documents|pairs)\[(?P<index>\d+)\](?:\[(?P<part>[01])\])?")


def add_rerank_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rerank`."""
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help="one document per line (blank lines are skipped), JSON lines, a JSON array, or .csv; - is stdin",
    )
    parser.add_argument("--query", "-q", required=True, help="the search text")
    add_ranking_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per result, with the document's line")


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of each call."""
    parser.add_argument("--top-n", "-n", type=positive, metavar="N", help="number of results (all)")
    parser.add_argument("--min-relevance-score", type=share, metavar="SCORE", help="leave out results below it, 0 to 1")
    parser.add_argument(
        "--long-documents",
        choices=("truncate", "chunk"),
        default="truncate",
        help="truncate, or score in chunks (%(default)s)",
    )
    add_text_arguments(parser)
    add_cascade_arguments(parser)
    _add_scoring_arguments(parser)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that make a document's text."""
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--fields", type=_names, metavar="A,B", help="fields of JSON or CSV that make the text")
    texts.add_argument("--template", metavar="TEXT", help='template that makes the text: "{title}: {price}"')


def chosen_texts(options: argparse.Namespace) -> tuple[str | list[str] | None, str]:
    """What makes a document's text, None for its field `text`; and the option or options, for messages."""
    if options.template is not None:
        return options.template, "--template"
    return options.fields, "--fields" if options.fields is not None else "--fields or --template"


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `score`."""
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="- is stdin; blank lines are skipped")
    parser.add_argument("--raw", action="store_true", help="logits instead of relevance scores")
    _add_scoring_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per pair, with its line")


def _add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-length", type=positive, metavar="TOKENS", help="tokens of a pair (the server's default)")
    parser.add_argument(
        "--priority", type=positive, metavar="N", help="1 is served first, 3 is for bulk jobs (the server's default)"
    )


def rerank(options: argparse.Namespace) -> int:
    """Run `rerank`."""
    stages = cascade_of(options)
    items = read_documents(options.file)
    text_from, option = chosen_texts(options)
    with in_shell_terms(items, option):
        check_texts(items, text_from, option)
        with connected(options) as client:
            response = client.rerank(
                options.query,
                [item.value for item in items],
                top_n=options.top_n,
                max_length=options.max_length,
                min_relevance_score=options.min_relevance_score,
                long_documents=options.long_documents,
                priority=options.priority,
                text_from=text_from,
                cascade=stages,
            )
    if options.json:
        for result in response:
            fields = document_fields(result, items[result.index].line)
            if stages is not None:
                fields["stage"] = result.stage
            print(json.dumps(fields, ensure_ascii=False, default=str))
    else:
        print_table(response)
    return 0


def score(options: argparse.Namespace) -> int:
    """Run `score`: read pairs in batches and print each score as soon as its batch is scored."""
    name = "logit" if options.raw else "relevance_score"
    with connected(options) as client, progress_bar("pairs") as advance:
        pairs = read_pairs(options.file)
        while batch := list(islice(pairs, _BATCH_PAIRS)):
            with in_shell_terms(batch):
                scores = client.score(
                    [item.value for item in batch],
                    normalize=not options.raw,
                    max_length=options.max_length,
                    priority=options.priority,
                )
            for item, value in zip(batch, scores, strict=True):
                print(json.dumps({"line": item.line, name: value}) if options.json else f"{value:.6g}")
            sys.stdout.flush()
            advance(len(batch))
    return 0


def check_texts(items: Sequence[Item], text_from: str | list[str] | None, option: str) -> None:
    """Refuse documents without fields, whose text the client would use as it is."""
    if text_from is None:
        return
    text_reader(text_from)  # a bad template is reported before a bad line
    for item in items:
        if isinstance(item.value, str):
            raise item.error(f"not a JSON object; {option} needs JSON lines, a JSON array of objects, or .csv")


@contextmanager
def in_shell_terms(items: Sequence[Item], text_option: str = "--fields or --template") -> Iterator[None]:
    """Replace names of Python arguments in an error by options, and list indices by file and line."""
    try:
        yield
    except InvalidRequestError as error:
        message = re.sub(r"\bquery\b(?= is )", "--query", str(error).replace("text_from", text_option))
        for name in ("top_n", "max_length", "min_relevance_score", "long_documents", "priority"):
            message = re.sub(rf"\b{name}\b", "--" + name.replace("_", "-"), message)
        message = re.sub(r"(?<![-\w])cascade(\.first)?(?![-\w])", _cascade_option, message)
        message = re.sub(r",? or None( for [^;]*)?$", "", message)
        raise type(error)(_INDEX.sub(lambda match: _named(match, items), message)) from error


def _named(match: re.Match[str], items: Sequence[Item]) -> str:
    index = int(match["index"])
    if index >= len(items):
        return match[0]
    return f"{items[index].where}: {'query' if match['part'] == '0' else 'document'}"


def _cascade_option(match: re.Match[str]) -> str:
    return "--cascade-first" if match[1] else "--cascade"


def _names(value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("no field name; write --fields title,text")
    return names
