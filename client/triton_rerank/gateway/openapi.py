"""The description of the interface in OpenAPI 3.1. Schemas come from the structures that read and write the bodies."""

from __future__ import annotations

from typing import Any

import msgspec

from triton_rerank import __version__
from triton_rerank.gateway.answers import CohereAnswer, NimAnswer, ScoreAnswer, TeiResult, VoyageAnswer
from triton_rerank.gateway.bodies import Body, ScoreBody

EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": (
        "Cohere, Jina, vLLM, infinity and most others",
        {"model": "reranker", "query": "how to prevent flu?", "documents": ["Wash your hands.", "Flutes are wooden."]},
    ),
    "cohere_objects": (
        "Documents with fields",
        {
            "query": "how to prevent flu?",
            "documents": [{"title": "Hygiene", "text": "Wash your hands."}, "Flutes are wooden."],
            "rank_fields": ["title", "text"],
            "top_n": 1,
            "return_documents": True,
        },
    ),
    "tei": (
        "text-embeddings-inference",
        {"query": "how to prevent flu?", "texts": ["Wash your hands.", "Flutes are wooden."], "return_text": True},
    ),
    "nim": (
        "NVIDIA NIM",
        {"query": {"text": "how to prevent flu?"}, "passages": [{"text": "Wash your hands."}, {"text": "Flutes."}]},
    ),
    "voyage": (
        "Voyage",
        {"query": "how to prevent flu?", "documents": ["Wash your hands.", "Flutes are wooden."], "top_k": 1},
    ),
}
"""Requests that work: name -> (the dialect's callers, body)."""

SCORE_EXAMPLE: dict[str, Any] = {"text_1": "how to prevent flu?", "text_2": ["Wash your hands.", "Flutes are wooden."]}

_ERRORS = {
    "400": "The body is not usable; the message names what is wrong.",
    "401": "The API key is missing or wrong.",
    "404": "No such path, or with --strict-model no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "429": "Too many calls; the header Retry-After says when to try again.",
    "500": "The model failed.",
    "503": "The reranker does not answer; the header Retry-After says when to try again.",
    "504": "The reranker did not answer in time.",
}
_GETS = {
    "/health": "Whether the reranker scores pairs: 200 or 503.",
    "/ping": "The same.",
    "/v1/health/ready": "The same, as NVIDIA NIM words it.",
    "/v1/health/live": "200 as long as the gateway runs.",
    "/v1/models": "The served model under each of its names.",
    "/v1/models/{name}": "One model.",
    "/info": "The model as text-embeddings-inference describes itself.",
    "/metrics": "Metrics of the gateway for Prometheus.",
}


def document(*, secured: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        secured: Whether calls need an API key.
    """
    answers = (CohereAnswer, list[TeiResult], VoyageAnswer, NimAnswer)
    template = "#/components/schemas/{name}"
    schemas, components = msgspec.json.schema_components(
        (Body, ScoreBody, ScoreAnswer, *answers), ref_template=template
    )
    body, score_body, score_answer, *ranked = schemas
    examples = {name: {"summary": summary, "value": value} for name, (summary, value) in EXAMPLES.items()}
    same = "The same: the last segment of the path and the keys of the body count."
    rerank = _call("Order documents by relevance to a query.", body, {"oneOf": ranked}, examples)
    paths: dict[str, Any] = {"/v1/rerank": {"post": rerank}}
    for path in ("/v2/rerank", "/rerank", "/invocations", "/v1/ranking", "/v1/reranking"):
        paths[path] = {"post": {**_call(same, body, {"oneOf": ranked}, examples), "description": same}}
    score = {"score": {"summary": "vLLM", "value": SCORE_EXAMPLE}}
    paths["/score"] = {"post": _call("Score pairs, in their order.", score_body, score_answer, score)}
    paths |= {path: {"get": _get(path, summary)} for path, summary in _GETS.items()}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "triton-rerank gateway", "version": __version__},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in paths.values():
            if "post" in path:
                path["post"]["security"] = [{"key": []}]
    return described


def _call(summary: str, body: object, answer: object, examples: object) -> dict[str, Any]:
    answered = {"description": "The result.", "content": {"application/json": {"schema": answer}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body, "examples": examples}}},
        "responses": {"200": answered, **{status: {"description": text} for status, text in _ERRORS.items()}},
    }


def _get(path: str, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": {"description": "The answer."}}}
    if "{name}" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation
