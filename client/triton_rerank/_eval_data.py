"""Test collections in the layouts they are published in, as one value: queries, documents, judgements.

| layout | queries | documents | judgements |
|---|---|---|---|
| BEIR | queries.jsonl: `_id`, `text` | corpus.jsonl: `_id`, `title`, `text` | qrels/SPLIT.tsv or qrels.tsv |
| MS MARCO | id TAB text | id TAB text | four columns |
| MIRACL | id TAB text | docs-N.jsonl.gz: `docid`, `title`, `text` | four columns |
| C-MTEB reranking | one JSON line: `query`, `positive` and `negative`, lists of texts | | |
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ._errors import InvalidRequestError
from ._eval_files import Line, is_json_lines, read_lines
from ._eval_trec import Qrels, read_qrels

_POSITIVE = ("positive", "pos")
_NEGATIVE = ("negative", "negatives", "neg")


@dataclass(frozen=True, slots=True)
class Collection:
    """What a ranking is judged on."""

    queries: dict[str, str]
    """query_id -> text, the judged queries alone."""
    documents: dict[str, str]
    """doc_id -> text, the title before it."""
    qrels: Qrels
    """Of exactly these queries."""
    candidates: dict[str, list[str]] | None = None
    """query_id -> the documents to rank, where the collection lists them."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where a collection lies."""

    queries: Path
    corpus: tuple[Path, ...]
    qrels: Path


def beir_files(folder: Path, split: str) -> Files:
    """The files of a BEIR folder.

    Raises:
        InvalidRequestError: One is missing.
    """
    qrels = next((path for path in (folder / "qrels" / f"{split}.tsv", folder / "qrels.tsv") if path.is_file()), None)
    if qrels is None:
        raise InvalidRequestError(f"{folder}: neither qrels/{split}.tsv nor qrels.tsv; make one, or name another split")
    found = {}
    for name in ("queries", "corpus"):
        paths = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
        if not paths:
            raise InvalidRequestError(f"{folder}: no {name}.jsonl; a BEIR folder has corpus.jsonl and queries.jsonl")
        found[name] = paths[0]
    return Files(found["queries"], (found["corpus"],), qrels)


def load_queries(path: Path, qrels: Qrels, max_queries: int | None) -> tuple[dict[str, str], Qrels]:
    """The judged queries in the order of the file, or a sample of `max_queries` of them, and their judgements.

    Raises:
        InvalidRequestError: A line is bad, or a judged query is not in the file.
    """
    texts = read_queries(path)
    missing = [query_id for query_id in qrels if query_id not in texts]
    if missing:
        raise InvalidRequestError(
            f"{path}: lacks {len(missing)} of {len(qrels)} judged queries, the first is {missing[0]}"
        )
    sampled = sample((query_id for query_id in texts if query_id in qrels), max_queries)
    chosen = {query_id: text for query_id, text in texts.items() if query_id in sampled}
    return chosen, {query_id: qrels[query_id] for query_id in chosen}


def sample(query_ids: Iterable[str], count: int | None) -> set[str]:
    """`count` of the ids, the same ones each time; all if None.

    Not the first ones: neighbours in a file often share a document. A larger sample holds every smaller one.
    """
    return set(sorted(query_ids, key=lambda query_id: (_digest(query_id), query_id))[:count])


def read_queries(path: Path) -> dict[str, str]:
    """query_id -> text, from JSON lines or from id TAB text.

    Raises:
        InvalidRequestError: A line is bad, a query is empty or comes twice.
    """
    texts: dict[str, str] = {}
    for line in read_lines(path):
        if is_json_lines(path):
            fields = line.json_object()
            query_id, text = line.field(fields, "_id", "query_id", "id"), line.field(fields, "text", "query")
        else:
            query_id, text = _tab_columns(line)
        if not text.strip():
            raise line.error(f"query {query_id} is empty")
        _add(texts, query_id, text, line)
    return texts


def read_corpus(paths: Sequence[Path], wanted: Container[str] | None = None) -> dict[str, str]:
    """doc_id -> text, from JSON lines or from id TAB text; the title and a blank stand before the text.

    Args:
        paths: Of one file, or of the parts of a large corpus.
        wanted: Ids to keep, so that a large corpus need not fit into memory; all if None.

    Raises:
        InvalidRequestError: A line is bad, or an id comes twice.
    """
    documents: dict[str, str] = {}
    for path in paths:
        json_lines = is_json_lines(path)
        for line in read_lines(path):
            if json_lines:
                fields = line.json_object()
                doc_id, text = line.field(fields, "_id", "docid", "id"), line.field(fields, "text", "contents")
                text = f"{fields.get('title') or ''} {text}".strip()
            else:
                doc_id, text = _tab_columns(line)
            if wanted is None or doc_id in wanted:
                _add(documents, doc_id, text, line)
    return documents


def load_files(files: Files, max_queries: int | None, wanted: Container[str] | None = None) -> Collection:
    """A collection of three kinds of files.

    Args:
        files: Where they are.
        max_queries: Take a sample of so many judged queries; all if None.
        wanted: Ids of documents to keep; all if None.

    Raises:
        InvalidRequestError: A line is bad, or the files do not fit together.
    """
    queries, qrels = load_queries(files.queries, read_qrels(files.qrels), max_queries)
    return Collection(queries, read_corpus(files.corpus, wanted), qrels)


def load_reranking(path: Path, max_queries: int | None, *, complete: bool = True) -> Collection:
    """C-MTEB's reranking sets: each query with its own documents, relevant ones and others.

    Documents are named by a digest of their text, so that no order of the file can leak into ties.

    Args:
        path: JSON lines: `query`, `positive` (or `pos`) and `negative` (`negatives`, `neg`), a text or a list of texts.
        max_queries: Take a sample of so many queries; all if None.
        complete: Pass over queries without other documents, as MTEB does, and demand `negative`. Queries without a
            relevant document are always passed over.

    Raises:
        InvalidRequestError: A line is bad.
    """
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    qrels: Qrels = {}
    sampled = None if max_queries is None else sample(_usable(path), max_queries)
    for line in read_lines(path):
        fields = line.json_object() if complete else {"neg": [], **line.json_object()}
        relevant, others = _texts(line, fields, *_POSITIVE), _texts(line, fields, *_NEGATIVE)
        query_id = f"q{line.number}"
        if not relevant or (complete and not others) or (sampled is not None and query_id not in sampled):
            continue
        queries[query_id] = line.field(fields, "query")
        judged = dict.fromkeys(map(_digest, others), 0) | dict.fromkeys(map(_digest, relevant), 1)
        qrels[query_id] = judged
        documents.update((_digest(text), text) for text in (*relevant, *others))
    if not queries:
        raise InvalidRequestError(f"{path}: no query with both positive and negative documents")
    return Collection(queries, documents, qrels, {query_id: sorted(judged) for query_id, judged in qrels.items()})


def check_documents(documents: Container[str], candidates: Iterable[tuple[str, Iterable[str]]], source: str) -> None:
    """See that every candidate has a text.

    Raises:
        InvalidRequestError: One has none.
    """
    for query_id, doc_ids in candidates:
        for doc_id in doc_ids:
            if doc_id not in documents:
                raise InvalidRequestError(
                    f"{source}: names document {doc_id} for query {query_id}, which the corpus does not hold"
                )


def _usable(path: Path) -> Iterator[str]:
    """Ids of the queries that have both relevant and other documents."""
    for line in read_lines(path):
        fields = line.json_object()
        if _texts(line, fields, *_POSITIVE) and _texts(line, fields, *_NEGATIVE):
            yield f"q{line.number}"


def _texts(line: Line, fields: dict[str, Any], *names: str) -> list[str]:
    value = next((fields[name] for name in names if name in fields), None)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise line.error(f"needs {names[0]!r}, a text or a list of texts")
    return values


def _tab_columns(line: Line) -> tuple[str, str]:
    key, tab, text = line.text.partition("\t")
    if not tab:
        raise line.error("no tab between id and text")
    return key.strip(), text


def _add(texts: dict[str, str], key: str, text: str, line: Line) -> None:
    if key in texts:
        raise line.error(f"id {key} a second time")
    if not key or len(key.split()) > 1:
        raise line.error(f"id {key!r} is empty or has a blank in it, which TREC files cannot hold")
    texts[key] = text


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
