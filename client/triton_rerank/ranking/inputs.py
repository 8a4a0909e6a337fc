"""A query and its documents, checked and encoded once for every model that scores them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

from triton_rerank.ranking.documents import TextOf, read_text
from triton_rerank.ranking.validation import check_many, check_query, encode_text
from triton_rerank.types import DocumentT


@dataclass(frozen=True, slots=True)
class Inputs(Generic[DocumentT]):
    """What the caller passed, and its texts."""

    query: bytes
    documents: list[DocumentT]
    texts: list[str]
    """Of each document."""
    encoded: list[bytes]
    """`texts` in UTF-8."""

    @classmethod
    def read(cls, query: str, documents: Iterable[DocumentT], text_of: TextOf = read_text) -> Inputs[DocumentT]:
        """Check a query and documents.

        Args:
            query: The search text.
            documents: At most `MAX_DOCUMENTS`.
            text_of: Reads a document's text.

        Raises:
            InvalidRequestError: The query or a document is unusable.
        """
        encoded_query = encode_text(check_query(query), "query")
        taken: list[DocumentT] = check_many(documents, "documents", "documents")
        texts = [text_of(document, f"documents[{index}]") for index, document in enumerate(taken)]
        encoded = [encode_text(text, f"documents[{index}]") for index, text in enumerate(texts)]
        return cls(encoded_query, taken, texts, encoded)
