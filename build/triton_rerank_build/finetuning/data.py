"""Queries, each with relevant documents and others, from BEIR folders or JSON lines; hard negatives."""

import random
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW
from sentence_transformers.util import mine_hard_negatives

from triton_rerank import RerankError
from triton_rerank.evaluation import Bm25, beir_files, load_files, load_reranking
from triton_rerank_build.errors import BuildError
from triton_rerank_build.finetuning.settings import Settings
from triton_rerank_build.support.progress import bar


@dataclass
class Example:
    """A query, its relevant documents with a relevance above 0, and documents to rank below them, hardest first."""

    query: str
    relevant: list[tuple[str, float]]
    negatives: list[str]


def load(paths: Sequence[Path], split: str, settings: Settings) -> list[Example]:
    """The queries of all sources that have a relevant document and another, shuffled."""
    # Unless only given negatives are wanted, BM25 adds some of a folder's corpus to each of its queries, and some of a
    # file's documents to those without any.
    examples: list[Example] = []
    try:
        for path in paths:
            given = settings.negatives == "given"
            found, corpus = _read(path, split, complete=given)
            if lacking := [item for item in found if not given and (path.is_dir() or not item.negatives)]:
                search = Bm25(corpus).search
            for item in bar(lacking, f"{path.name}: negatives"):
                item.negatives.extend(corpus[key] for key in search(item.query, settings.mining_depth))
            examples += found
    except RerankError as error:
        raise BuildError(str(error)) from error
    except OSError as error:
        raise BuildError(f"{error.filename}: {error.strerror}; give BEIR folders or files of JSON lines") from error
    for item in examples:
        item.negatives = [text for text in dict.fromkeys(item.negatives) if text not in dict(item.relevant)]
    usable = [item for item in examples if item.relevant and item.negatives]
    if not usable:
        raise BuildError(f"no query of {', '.join(map(str, paths))} has relevant and other documents; give both")
    return random.Random(settings.seed).sample(usable, len(usable))


def mine(model: CrossEncoder, examples: Sequence[Example]) -> list[Example]:
    """Order each query's negatives by the model's own logits, highest first, up to its lowest relevant document."""
    # Those above it are more often unjudged answers than mistakes; a query that has no others keeps them.
    # The candidates are there: to the embedding model that is asked for them all texts are equal.
    options: dict[str, Any] = {"model": SentenceTransformer(modules=[BoW(["-"])], device="cpu"), "cross_encoder": model}
    options |= {"absolute_margin": 0.0, "output_format": "labeled-list", "verbose": False}
    mined = []
    for item in bar(examples, "mining"):
        pairs = Dataset.from_list([{"query": item.query, "positive": text} for text, _ in item.relevant])
        depth: dict[str, Any] = {"range_max": len(item.negatives), "num_negatives": len(item.negatives)}
        with redirect_stderr(StringIO()):  # it draws bars for each query
            found = mine_hard_negatives(pairs, corpus=item.negatives, **depth, **options)
        mined += [replace(item, negatives=row["positive"][1:]) for row in list(found)[:1]] or [item]
    return mined


def _read(path: Path, split: str, complete: bool) -> tuple[list[Example], dict[str, str]]:
    # Judgements of a test split are never learned from: only a folder without splits has its one file read.
    files = beir_files(path, split if (path / "qrels").is_dir() else None) if path.is_dir() else None
    collection = load_files(files, None) if files else load_reranking(path, None, complete=complete)
    examples: dict[str, Example] = {}
    for query_id, query in collection.queries.items():
        item = examples.setdefault(query, Example(query, [], []))  # a query may stand on several lines
        judged = [(collection.documents.get(key), value) for key, value in collection.qrels[query_id].items()]
        item.relevant += [(text, float(value)) for text, value in judged if text is not None and value > 0]
        item.negatives += [text for text, value in judged if text is not None and value <= 0]
    return list(examples.values()), collection.documents
