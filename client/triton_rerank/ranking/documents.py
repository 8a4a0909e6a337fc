"""The text of a document: a str, a mapping's "text", a `Document`, or fields joined as the caller says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

from triton_rerank.errors import InvalidRequestError
from triton_rerank.ranking.validation import kind_of
from triton_rerank.types import Document, DocumentLike, TextFrom

TextOf = Callable[[DocumentLike, str], str]
"""(document, its name in messages) -> text."""


def text_reader(text_from: TextFrom | None) -> TextOf:
    """The function that reads a document's text.

    Args:
        text_from: None for "text"; a template such as "{title} ({brand}), {price:.2f} EUR", whose fields a
            mapping must have; names of fields, whose values are joined by newlines, absent and empty ones
            left out; or a function from the document to its text.
    """
    if text_from is None:
        return read_text
    if isinstance(text_from, str):
        return _template_reader(text_from)
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
    try:
        names = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise InvalidRequestError(f"text_from is not a template: {error}") from None
    # A plain name only: "{title.__class__}" would reach into the caller's objects.
    unusable = [name for name in names if not name.isidentifier()]
    if unusable or not names:
        what = f"has the field {{{unusable[0]}}}" if unusable else "names no field"
        raise InvalidRequestError(f'text_from {what}; write a template with plain names such as "{{title}}: {{price}}"')

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
        try:
            return template.format_map(fields)
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"{name} does not fit the template in text_from: {error}") from None

    return read


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
        return "\n".join(str(value) for value in values if value is not None and value != "")

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
