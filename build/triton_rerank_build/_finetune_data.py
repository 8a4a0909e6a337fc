"""Training data: queries, each with relevant documents and others, from BEIR folders or JSON lines."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triton_rerank import RerankError
from triton_rerank.evaluation.bm25 import Bm25
from triton_rerank.evaluation.collections import Files, load_files
from triton_rerank.evaluation.lines import Line, read_lines
from triton_rerank_build.errors import BuildError
from triton_rerank_build.support.files import sha256_file
from triton_rerank_build.support.progress import bar

Score = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""Pairs of query and document -> logits."""


@dataclass(frozen=True)
class Example:
    """A query with what it is to be trained on.

    Attributes:
        query: The search text.
        relevant: (document, relevance above 0).
        negatives: Documents to rank below these, the hardest first where they were mined.
    """

    query: str
    relevant: tuple[tuple[str, float], ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class TrainingList:
    """What one loss is computed of: a relevant document, then others.

    Attributes:
        query: The search text.
        documents: The relevant one first.
        relevances: Of the documents, 0 for the others.
    """

    query: str
    documents: tuple[str, ...]
    relevances: tuple[float, ...]


def load(paths: Sequence[Path], negatives: str, depth: int, split: str = "train") -> list[Example]:
    """Read all sources.

    Args:
        paths: BEIR folders (queries.jsonl, corpus.jsonl, qrels/SPLIT.tsv or qrels.tsv), and files of JSON
            lines: "query", "positive" and "negatives", a text or a list of texts.
        negatives: As in `Settings`; BM25 looks for them in a folder's corpus.
        depth: Candidates that BM25 returns for a query.
        split: Of the judgements, "train" or "dev", where a folder has several.

    Raises:
        BuildError: A line is bad, named with file and number; or nothing is left to train on.
    """
    examples: list[Example] = []
    try:
        for path in paths:
            examples += _from_beir(path, split, negatives, depth) if path.is_dir() else _from_json_lines(path)
    except RerankError as error:
        raise BuildError(str(error)) from error
    except OSError as error:
        raise BuildError(f"{error.filename}: {error.strerror}; give BEIR folders or files of JSON lines") from error
    usable = [example for example in examples if example.relevant and example.negatives]
    if not usable:
        raise BuildError(
            f"no query of {', '.join(map(str, paths))} has a relevant document and another; give negatives or mine them"
        )
    return usable


def split(examples: Sequence[Example], share: float, at_most: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(for training, held out): the same for the same seed; at least one of each.

    Raises:
        BuildError: There is only one query.
    """
    if len(examples) < 2:
        raise BuildError("one query only: nothing can be held out; give --dev, or more data")
    order = sample(examples, len(examples), seed)
    count = max(1, min(at_most, round(len(order) * share), len(order) - 1))
    return order[count:], order[:count]


def sample(examples: Sequence[Example], at_most: int, seed: int) -> list[Example]:
    """Some of them, of all sources alike: the same for the same seed, and a larger sample holds a smaller one."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    return order[:at_most]


def hardest_by(score: Score, examples: Sequence[Example]) -> list[Example]:
    """Order each query's negatives by the model's own logits, highest first.

    Those that it puts above the best relevant document are more often unjudged answers than mistakes: they
    are left out, unless nothing else remains.
    """
    sorted_examples = []
    for example in bar(examples, "mining"):
        documents = [*(text for text, _ in example.relevant), *example.negatives]
        logits = list(score([(example.query, document) for document in documents]))
        best = max(logits[: len(example.relevant)])
        scored = sorted(zip(logits[len(example.relevant) :], example.negatives, strict=True), key=lambda item: -item[0])
        below = tuple(document for logit, document in scored if logit < best)
        sorted_examples.append(replace(example, negatives=below or tuple(document for _, document in scored)))
    return sorted_examples


def training_list(example: Example, num_negatives: int, chance: random.Random) -> TrainingList:
    """A relevant document and some of the negatives, drawn anew each time.

    They are drawn from the first 4 x `num_negatives`, where the hard ones stand.
    """
    document, relevance = chance.choice(example.relevant)
    pool = example.negatives[: 4 * num_negatives]
    others = chance.sample(pool, min(num_negatives, len(pool)))
    return TrainingList(example.query, (document, *others), (relevance, *[0.0] * len(others)))


def digests(paths: Sequence[Path], split: str = "train") -> dict[str, str]:
    """sha256 of every data file."""
    files = [file for path in paths for file in (_beir(path, split) if path.is_dir() else [path])]
    return {f"{file.parent.name}/{file.name}": sha256_file(file) for file in files}


def _beir(folder: Path, split: str) -> list[Path]:
    qrels = next((path for path in (folder / "qrels" / f"{split}.tsv", folder / "qrels.tsv") if path.is_file()), None)
    if qrels is None:
        raise BuildError(f"{folder}: neither qrels/{split}.tsv nor qrels.tsv")
    return [folder / "queries.jsonl", folder / "corpus.jsonl", qrels]


def _from_beir(folder: Path, split: str, negatives: str, depth: int) -> Iterable[Example]:
    queries, corpus, qrels = _beir(folder, split)
    collection = load_files(Files(queries, (corpus,), qrels), None)
    documents = collection.documents
    index = None if negatives == "given" else Bm25(documents)
    for query_id, text in bar(list(collection.queries.items()), f"{folder.name}: negatives"):
        judged = {doc_id: value for doc_id, value in collection.qrels[query_id].items() if doc_id in documents}
        relevant = {doc_id: float(value) for doc_id, value in judged.items() if value > 0}
        others = [doc_id for doc_id in judged if doc_id not in relevant]
        if index is not None:
            others += [doc_id for doc_id in index.search(text, depth) if doc_id not in judged]
        # The same text under another id is no negative.
        known = {documents[doc_id] for doc_id in relevant}
        texts = dict.fromkeys(documents[doc_id] for doc_id in others)
        yield Example(
            text,
            tuple((documents[doc_id], value) for doc_id, value in relevant.items()),
            tuple(document for document in texts if document not in known),
        )


def _from_json_lines(path: Path) -> Iterable[Example]:
    for line in read_lines(path):
        fields = line.json_object()
        query = line.field(fields, "query")
        relevant = _texts(line, fields, "positive", "pos")
        negatives = _texts(line, fields, "negatives", "negative", "neg")
        yield Example(query, tuple((text, 1.0) for text in relevant), tuple(dict.fromkeys(negatives)))


def _texts(line: Line, fields: dict[str, Any], *names: str) -> list[str]:
    value = next((fields[name] for name in names if name in fields), None)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise line.error(f"needs {names[0]!r}, a text or a list of texts")
    return values
