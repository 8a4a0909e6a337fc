"""Test collections (queries, documents, judgements) in the layouts in which they are published.

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

from triton_rerank.errors import InvalidRequestError
from triton_rerank.evaluation.lines import Line, is_json_lines, read_lines
from triton_rerank.evaluation.trec import Qrels, read_qrels

_POSITIVE = ("positive", "pos")
_NEGATIVE = ("negative", "negatives", "neg")


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries, documents and judgements in memory."""

    queries: dict[str, str]
    """query_id -> text; judged queries only."""
    documents: dict[str, str]
    """doc_id -> text, which starts with the title."""
    qrels: Qrels
    """Judgements of exactly these queries."""
    candidates: dict[str, list[str]] | None = None
    """query_id -> the documents to rank, if the collection lists them."""
    complete: bool = True
    """False if `documents` holds only the documents in `wanted`."""


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of a collection's files."""

    queries: Path
    corpus: tuple[Path, ...]
    qrels: Path


def beir_files(folder: Path, split: str | None = None) -> Files:
    """The files of a BEIR folder.

    Args:
        folder: Holds corpus.jsonl, queries.jsonl (or .jsonl.gz) and the judgements.
        split: Use qrels/SPLIT.tsv. None: qrels/test.tsv, or qrels.tsv if that does not exist.

    Raises:
        InvalidRequestError: The folder or a file does not exist.
    """
    if not folder.is_dir():
        raise InvalidRequestError(f"{folder}: no such folder")
    found = {}
    for name in ("queries", "corpus"):
        paths = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
        if not paths:
            raise InvalidRequestError(f"{folder}: no {name}.jsonl; a BEIR folder has corpus.jsonl and queries.jsonl")
        found[name] = paths[0]
    return Files(found["queries"], (found["corpus"],), _beir_qrels(folder, split))


def _beir_qrels(folder: Path, split: str | None) -> Path:
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    choice = f"name a split that exists: {', '.join(splits)}" if splits else "the folder has no qrels/SPLIT.tsv"
    single = folder / "qrels.tsv"
    if split is None:
        qrels = next((path for path in (folder / "qrels" / "test.tsv", single) if path.is_file()), None)
        if qrels is None:
            raise InvalidRequestError(f"{folder}: neither qrels/test.tsv nor qrels.tsv exists; {choice}")
        return qrels
    qrels = folder / "qrels" / f"{split}.tsv"
    if not qrels.is_file():
        remedy = "leave out the split to use qrels.tsv" if single.is_file() else choice
        raise InvalidRequestError(f"{folder}: qrels/{split}.tsv does not exist; {remedy}")
    return qrels


def load_queries(path: Path, qrels: Qrels, max_queries: int | None) -> tuple[dict[str, str], Qrels]:
    """The judged queries in the order of the file, and their judgements.

    Args:
        path: File of queries.
        qrels: All judgements.
        max_queries: Take a sample of this size; all judged queries if None.

    Raises:
        InvalidRequestError: A line is invalid, or a judged query is not in the file.
    """
    texts = read_queries(path)
    missing = [query_id for query_id in qrels if query_id not in texts]
    if missing:
        raise InvalidRequestError(
            f"{path}: {len(missing)} of {len(qrels)} judged queries are missing, the first is {missing[0]}"
        )
    sampled = sample((query_id for query_id in texts if query_id in qrels), max_queries)
    chosen = {query_id: text for query_id, text in texts.items() if query_id in sampled}
    return chosen, {query_id: qrels[query_id] for query_id in chosen}


def sample(query_ids: Iterable[str], count: int | None) -> set[str]:
    """A deterministic sample of `count` ids; all if None.

    The order is that of a digest, because neighbours in a file often share a document. A larger sample contains every
    smaller one.
    """
    return set(sorted(query_ids, key=lambda query_id: (_digest(query_id), query_id))[:count])


def read_queries(path: Path) -> dict[str, str]:
    """Read query_id -> text from JSON lines or from id TAB text.

    Raises:
        InvalidRequestError: A line is invalid, a query is empty, or an id occurs twice.
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
    """Read doc_id -> text from JSON lines or from id TAB text. The text starts with the title and a blank.

    Args:
        paths: One file, or the parts of a large corpus.
        wanted: Ids to keep, so that a large corpus need not fit into memory; all if None.

    Raises:
        InvalidRequestError: A line is invalid, or an id occurs twice.
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
    """Read a collection from files of queries, documents and judgements.

    Args:
        files: Their paths.
        max_queries: Take a sample of this many judged queries; all if None.
        wanted: Ids of documents to keep; all if None.

    Raises:
        InvalidRequestError: A line is invalid, or the files do not fit together.
    """
    queries, qrels = load_queries(files.queries, read_qrels(files.qrels), max_queries)
    return Collection(queries, read_corpus(files.corpus, wanted), qrels, complete=wanted is None)


def load_reranking(path: Path, max_queries: int | None, *, complete: bool = True) -> Collection:
    """Read a C-MTEB reranking set: each query lists its relevant and its other documents.

    A document's id is a digest of its text, so that ties do not depend on the order of the file.

    Args:
        path: JSON lines: `query`, `positive` (or `pos`) and `negative` (`negatives`, `neg`), a text or a list of texts.
        max_queries: Take a sample of so many queries; all if None.
        complete: Skip queries without other documents, as MTEB does, and require `negative`. Queries without a
            relevant document are always skipped.

    Raises:
        InvalidRequestError: A line is invalid, or no query has both kinds of documents.
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
    """Check that every candidate has a text.

    Raises:
        InvalidRequestError: A candidate is not in the corpus.
    """
    for query_id, doc_ids in candidates:
        for doc_id in doc_ids:
            if doc_id not in documents:
                raise InvalidRequestError(f"{source}: document {doc_id} of query {query_id} is not in the corpus")


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
        raise line.error("no tab between id and text; expected id TAB text")
    return key.strip(), text


def _add(texts: dict[str, str], key: str, text: str, line: Line) -> None:
    if key in texts:
        raise line.error(f"id {key} occurs a second time")
    if not key or len(key.split()) > 1:
        raise line.error(f"id {key!r} is empty or contains whitespace, which TREC files cannot represent")
    texts[key] = text


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
