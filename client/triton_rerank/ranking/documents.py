"""The text of a document: a str, a mapping's "text", a `Document`, or fields joined as the caller says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Generic

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.validation import check_many, check_query, encode_text, kind_of
from triton_rerank.types import Document, DocumentLike, DocumentT, TextFrom

TextOf = Callable[[DocumentLike, str], str]
"""(document, its name in messages) -> text."""

_WIDEST = 200
"""Characters that a format specification may ask for: more pads a document, or fills the memory."""


def text_reader(text_from: TextFrom | None) -> TextOf:
    """The function that reads a document's text.

    Args:
        text_from: None for "text"; a template such as "{title} ({brand}), {price:.2f} EUR", whose fields a
            mapping must have; a field name, or a list of them, whose values are joined by newlines, absent and empty
            ones left out; or a function from the document to its text.
    """
    if text_from is None:
        return read_text
    if isinstance(text_from, str):
        return _field_reader([text_from]) if text_from.isidentifier() else _template_reader(text_from)
    if callable(text_from):
        return _function_reader(text_from)
    return _field_reader(text_from)


def read_text(document: DocumentLike, name: str) -> str:
    """The text of a str, of a `Document`, or of a mapping's "text"."""
    if isinstance(document, str):
        return document
    if isinstance(document, Document):
        return _checked(document.text, f"{name}.text")
    if isinstance(document, Mapping):
        if "text" not in document:
            raise InvalidRequestError(
                f'{name} has no "text" (its keys: {_keys(document)}); '
                "add it, or say with text_from which fields make the text"
            )
        return _checked(document["text"], f'{name}["text"]')
    raise InvalidRequestError(
        f'{name} is not text (got {kind_of(document)}); pass a str, a mapping with "text", or a Document'
    )


def _template_reader(template: str) -> TextOf:
    pieces = _parse(template)
    names = [field for _, field, _, _ in pieces if field is not None]

    def read(document: DocumentLike, name: str) -> str:
        if isinstance(document, str):
            return document
        fields = _fields(document, name)
        missing = [field for field in names if field not in fields]
        if missing:
            raise InvalidRequestError(
                f"{name} has no {missing[0]!r}, which text_from needs (its keys: {_keys(fields)}); "
                "add it, or name the fields in a list, where absent ones are left out"
            )
        return "".join(
            literal if field is None else literal + _formatted(fields[field], spec, conversion, f"{name}[{field!r}]")
            for literal, field, spec, conversion in pieces
        )

    return read


def _parse(template: str) -> list[tuple[str, str | None, str, str | None]]:
    """The pieces of a template: text, field, format specification and conversion."""
    try:
        pieces = [(text, field, spec or "", way) for text, field, spec, way in Formatter().parse(template)]
    except ValueError as error:
        raise InvalidRequestError(f"text_from is not a template: {error}") from None
    names = [field for _, field, _, _ in pieces if field is not None]
    # Plain names only: "{title.__class__}" would reach into the caller's objects.
    unusable = [name for name in names if not name.isidentifier()]
    if unusable or not names:
        what = f"has the field {{{unusable[0]}}}" if unusable else "names no field"
        raise InvalidRequestError(f'text_from {what}; write a template with plain names such as "{{title}}: {{price}}"')
    for _, field, spec, way in pieces:
        if "{" in spec:
            raise InvalidRequestError(f"text_from has a field in the format of {{{field}}}; write the format out")
        if any(int(number) > _WIDEST for number in re.findall(r"[0-9]+", spec)):
            raise InvalidRequestError(f"text_from formats {{{field}}} wider than {_WIDEST} characters: {spec!r}")
        if way not in (None, "s", "r", "a"):
            raise InvalidRequestError(f"text_from has the conversion {{{field}!{way}}}; Python knows !s, !r and !a")
    return pieces


def _formatted(value: object, spec: str, conversion: str | None, name: str) -> str:
    """A field's value in a template: None is empty, items of a list or mapping are joined by commas."""
    if conversion is not None:
        value = Formatter().convert_field(value, conversion)
    elif value is None:
        return ""
    elif isinstance(value, (list, tuple)):
        return ", ".join(_formatted(item, spec, None, name) for item in value)
    elif isinstance(value, (set, frozenset)):  # sets have no order that two processes share
        return ", ".join(sorted(_formatted(item, spec, None, name) for item in value))
    elif isinstance(value, Mapping):
        return ", ".join(f"{key}: {_formatted(item, spec, None, name)}" for key, item in value.items())
    try:
        return format(value, spec)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"{name} does not fit the template in text_from: {error}") from None


def _field_reader(names: Sequence[str]) -> TextOf:
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidRequestError("text_from is neither a template, a list of field names, nor a function")

    def read(document: DocumentLike, name: str) -> str:
        if isinstance(document, str):
            return document
        fields = _fields(document, name)
        if not any(field in fields for field in names):
            raise InvalidRequestError(f"{name} has none of {list(names)} (its keys: {_keys(fields)})")
        values = (fields.get(field) for field in names)
        texts = (_formatted(value, "", None, name) for value in values)
        return "\n".join(text for text in texts if text)

    return read


def _function_reader(function: Callable[[Any], str]) -> TextOf:
    def read(document: DocumentLike, name: str) -> str:
        return _checked(function(document), f"text_from({name})")

    return read


def _fields(document: DocumentLike, name: str) -> Mapping[str, Any]:
    if isinstance(document, Document):
        return {**document.metadata, "id": document.id, "text": document.text}
    if isinstance(document, Mapping):
        return document
    raise InvalidRequestError(f"{name} has no fields (got {kind_of(document)}); pass a mapping or a Document")


def _checked(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} is not text (got {kind_of(text)})")
    return text


def _keys(fields: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in list(fields)[:8]) or "none"


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
