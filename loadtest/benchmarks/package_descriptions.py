"""Sets for ranking across languages, made of Debian's package descriptions and their translations.

    PYTHONPATH=loadtest python -m benchmarks.package_descriptions Translation-en.bz2 Translation-ja.bz2 --out cross

reads `main/i18n/Translation-LANGUAGE` of a Debian archive and writes two files in the layout of C-MTEB's reranking
sets, for `triton-rerank eval --reranking`. The queries of `to-english.jsonl` are translated synopses, its documents
English descriptions; `from-english.jsonl` has English synopses and translated descriptions. The description of the same
package is relevant; the other documents are those that BM25 finds for the English synopsis.

One package in twenty, chosen by a digest of its name, is a query. The others are available for training.
"""

import argparse
import bz2
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email import message_from_string
from itertools import islice
from pathlib import Path

from triton_rerank.evaluation.bm25 import Bm25

NUM_OTHERS = 14
SHORTEST_LINE, SHORTEST_BODY = 8, 120  # characters; shorter texts are too vague to be found
MOST_PACKAGES = 9000  # in the index


@dataclass(frozen=True)
class Description:
    """Description of a package in one language.

    Attributes:
        line: The synopsis.
        body: First two paragraphs of the long description.
    """

    line: str
    body: str


def main() -> None:
    """Write both files and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("english", type=Path, help="Translation-en, plain or .bz2")
    parser.add_argument("others", type=Path, nargs="+", help="files of other languages")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the two files")
    parser.add_argument("--max-queries", type=int, default=20, help="per language and direction (default: %(default)s)")
    options = parser.parse_args()
    english = read(options.english)
    english_index = index_of(english, english)
    to_english, from_english = [], []
    for path in options.others:
        translated = read(path)
        names = translated_names(english, translated)
        asked = sorted(filter(held_out, names), key=digest)
        translated_index = index_of(english, names)
        count = options.max_queries
        to_english += islice(rows(asked, english, english_index, asked_in=translated, found_in=english), count)
        from_english += islice(rows(asked, english, translated_index, asked_in=english, found_in=translated), count)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, made in (("to-english", to_english), ("from-english", from_english)):
        path = options.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
        print(f"{path}: {len(made)} queries; next: triton-rerank eval --reranking {path}")


def read(path: Path) -> dict[str, Description]:
    """Package -> description."""
    language = path.name.removesuffix(".bz2").split("-", 1)[1]
    with bz2.open(path, "rt") if path.suffix == ".bz2" else path.open() as file:
        paragraphs = file.read().split("\n\n")
    found: dict[str, Description] = {}
    for paragraph in paragraphs:
        fields = message_from_string(paragraph)
        line, _, rest = str(fields.get(f"Description-{language}", "")).partition("\n")
        body = " ".join(" ".join(map(str.strip, rest.splitlines())).split(" . ")[:2])
        if len(line) >= SHORTEST_LINE and len(body) >= SHORTEST_BODY:
            found.setdefault(str(fields["Package"]), Description(line, body))
    return found


def translated_names(english: dict[str, Description], translated: dict[str, Description]) -> list[str]:
    """Packages with a real translation."""
    return [
        name
        for name in sorted(english.keys() & translated.keys())
        if translated[name].line != english[name].line and not translated[name].body.isascii()
    ]


def index_of(english: dict[str, Description], names: Iterable[str]) -> Bm25:
    """Index of English bodies, of at most MOST_PACKAGES of these packages."""
    searched = sorted(names)
    random.Random(0).shuffle(searched)
    return Bm25({name: english[name].body for name in searched[:MOST_PACKAGES]})


def rows(
    names: list[str],
    english: dict[str, Description],
    index: Bm25,
    *,
    asked_in: dict[str, Description],
    found_in: dict[str, Description],
) -> Iterator[dict[str, object]]:
    """A row for each package with enough other documents: the line of `asked_in`, bodies of `found_in`."""
    for name in names:
        own = english[name]
        others = [other for other in index.search(own.line, NUM_OTHERS + 8) if other != name]
        # Packages of one source often share their texts.
        texts = dict.fromkeys(found_in[other].body for other in others if english[other].line != own.line)
        texts.pop(found_in[name].body, None)
        if len(texts) >= NUM_OTHERS // 2:
            yield {
                "query": asked_in[name].line,
                "positive": [found_in[name].body],
                "negative": list(texts)[:NUM_OTHERS],
                "package": name,
            }


def held_out(name: str) -> bool:
    """Whether a package is a query."""
    return digest(name) % 20 == 0


def digest(name: str) -> int:
    """Number of a name, the same in every process."""
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16)


if __name__ == "__main__":
    main()
