"""Bodies of requests: one structure reads every dialect.

Unknown keys are ignored, and strings stand for numbers and booleans where a caller sends them so ("true", "3").
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from triton_rerank.gateway.errors import invalid

Text = str | dict[str, Any]
"""A text, or an object that holds it."""


class Body(msgspec.Struct, rename=None):
    """A rerank request. `texts`, `passages`, `top_k` or else `documents` determine the format of the answer."""

    query: Annotated[Text | None, Meta(description='What was searched for: a string or {"text": "..."}.')] = None
    documents: Annotated[
        list[Text] | None,
        Meta(description='Texts, or objects whose text is in "text" or in the fields that `rank_fields` names.'),
    ] = None
    texts: Annotated[list[Text] | None, Meta(description="The documents, as text-embeddings-inference names them.")] = (
        None
    )
    passages: Annotated[list[Text] | None, Meta(description="The documents, as NVIDIA NIM names them.")] = None
    model: Annotated[str | None, Meta(description="Any name, unless the gateway runs with --strict-model.")] = None
    top_n: Annotated[int | None, Meta(description="Results to return; all if null, 0 or absent.")] = None
    top_k: Annotated[int | UnsetType | None, Meta(description="As top_n. Its presence chooses Voyage's answer.")] = (
        UNSET
    )
    return_documents: Annotated[bool | None, Meta(description="Whether results contain their documents.")] = None
    return_text: Annotated[bool | None, Meta(description="As return_documents, in calls with `texts`.")] = None
    raw_scores: Annotated[bool | None, Meta(description="Whether scores are logits instead of 0 to 1.")] = None
    rank_fields: Annotated[
        list[str] | None, Meta(description="Fields of a document that make its text, joined by newlines.")
    ] = None
    truncate: Annotated[
        bool | str | None,
        Meta(description='false or "NONE": refuse documents that are too long instead of cutting them.'),
    ] = None
    truncation: Annotated[bool | None, Meta(description="As truncate, in Voyage's calls.")] = None
    priority: Annotated[int | None, Meta(description="0 is served first; the server's default if absent.")] = None
    instruction: Annotated[
        str | None, Meta(description="What to look for; ignored if the model takes no instructions.")
    ] = None
    max_tokens_per_doc: Annotated[
        int | None, Meta(description="Tokens of a pair; ignored unless the gateway runs with --caller-limits.")
    ] = None
    max_chunks_per_doc: Annotated[
        int | None,
        Meta(description="Above 1: long documents are scored in parts; ignored unless --caller-limits."),
    ] = None


class ScoreBody(msgspec.Struct):
    """A request of `/score`: one text against many, or many pairs. Both sides under one of their names."""

    text_1: str | list[Text] | None = None
    text_2: str | list[Text] | None = None
    queries: str | list[Text] | None = None
    documents: str | list[Text] | None = None
    items: str | list[Text] | None = None
    data_1: str | list[Text] | None = None
    data_2: str | list[Text] | None = None
    model: str | None = None
    use_activation: Annotated[bool | None, Meta(description="false: scores are logits.")] = None
    priority: int | None = None


_StructT = TypeVar("_StructT", bound=msgspec.Struct)
_DECODERS = {kind: msgspec.json.Decoder(kind, strict=False) for kind in (Body, ScoreBody)}
_AT = re.compile(r" - at `\$\.?(.*)`$")


def decode(data: bytes | bytearray, kind: type[_StructT]) -> _StructT:
    """Read a body.

    Raises:
        GatewayError: It is not JSON, or a value has a wrong type; the message names its path.
        RecursionError: It is nested too deeply.
    """
    try:
        decoded: _StructT = _DECODERS[kind].decode(data)  # type: ignore[index, assignment]
    except msgspec.ValidationError as error:
        message = str(error)
        if found := _AT.search(message):
            path = found[1].replace("[...]", "[key]")
            raise invalid(f"{path}: {_lower(message[: found.start()])}", path) from None
        raise invalid(f"the body: {_lower(message)}; send a JSON object") from None
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8: byte 0x{error.object[error.start]:02x} of a string") from None
    except msgspec.DecodeError as error:
        problem = str(error).removeprefix("JSON is malformed: ")
        raise invalid(f"the body is not JSON: {_lower(problem)}; send a JSON object") from None
    return decoded


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
