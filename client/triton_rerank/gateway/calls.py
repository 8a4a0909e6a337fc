"""The calls that need the reranker: rerank in all dialects, and `/score`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from triton_rerank.gateway.answers import ScoreAnswer, ScoreResult, ScoreUsage
from triton_rerank.gateway.auth import Keys
from triton_rerank.gateway.bodies import Body, ScoreBody, decode
from triton_rerank.gateway.dialects import Answered, Search, answer, dialect_of, read_search
from triton_rerank.gateway.documents import Pairs, read_pairs
from triton_rerank.gateway.errors import GatewayError, invalid, json_response
from triton_rerank.gateway.reading import Reader
from triton_rerank.gateway.record import current
from triton_rerank.gateway.served import Served
from triton_rerank.gateway.settings import Settings
from triton_rerank.ranking.cascade import number_kept
from triton_rerank.types import CallOptions, Cascade, ModelInfo, Timing

_BodyT = TypeVar("_BodyT", bound=msgspec.Struct)
_LAST_PRIORITY = 3


class Calls:
    """The endpoints of one application that read a body."""

    def __init__(self, settings: Settings, served: Served) -> None:
        self._settings = settings
        self._served = served
        self._keys = Keys(settings.api_keys)
        self._reader = Reader(settings.max_body, settings.body_timeout)

    async def rerank(self, request: Request) -> Response:
        """Rank documents: Cohere, Jina, vLLM, infinity, text-embeddings-inference, NIM, Voyage."""
        return await self._serve(request, Body, self._rerank)

    async def score(self, request: Request) -> Response:
        """Score pairs, as vLLM does."""
        return await self._serve(request, ScoreBody, self._score)

    async def _serve(
        self, request: Request, kind: type[_BodyT], work: Callable[[Request, _BodyT], Awaitable[Response]]
    ) -> Response:
        self._keys.check(request.headers.get("authorization"))
        data = await self._reader.read(request)
        try:
            return await work(request, decode(data, kind))
        except RecursionError:
            raise invalid("the body is nested too deeply") from None
        finally:
            self._reader.release(data)

    async def _rerank(self, request: Request, body: Body) -> Response:
        record = current()
        record.dialect = dialect_of(body, prefix=request.scope["path"].lstrip("/").partition("/")[0])
        search = read_search(body, record.dialect, self._settings.max_documents)
        record.documents = len(search.texts)
        info = await self._model(search.model)
        work = self._served.client.rerank(search.query, search.texts, **self._options(search, info))
        response = await self._served.call(work, request.receive)
        record.tokens = response.usage.num_tokens
        if search.must_fit and response.usage.num_truncated:
            raise invalid(
                f"{response.usage.num_truncated} documents are longer than the model's {info.default_max_length} "
                "tokens, and the request forbids to truncate them; allow it, or send shorter documents"
            )
        return _respond(answer(search, response, _about(info)), response.timing)

    async def _score(self, request: Request, body: ScoreBody) -> Response:
        record = current()
        record.dialect = "score"
        pairs = read_pairs(body, self._settings.max_documents)
        record.documents = len(pairs.documents)
        info = await self._model(body.model)
        work = self._scores(pairs, body.use_activation is not False, _priority(body.priority, info))
        scores, record.tokens = await self._served.call(work, request.receive)
        data = [ScoreResult(index, score) for index, score in enumerate(scores)]
        about, usage = _about(info), ScoreUsage(record.tokens, record.tokens)
        return _respond(ScoreAnswer(f"score-{about.request_id}", about.created, about.model, data, usage))

    async def _scores(self, pairs: Pairs, normalize: bool, priority: int | None) -> tuple[list[float], int]:
        """Scores in the order of the pairs, and their tokens, which `AsyncRerankClient.score` does not report."""
        client, timeout = self._served.client, self._settings.timeout
        if len(pairs.queries) > 1:
            both = zip(pairs.queries, pairs.documents, strict=True)
            return await client.score(both, normalize=normalize, priority=priority, timeout=timeout), 0
        response = await client.rerank(pairs.queries[0], pairs.documents, priority=priority, timeout=timeout)
        results = sorted(response.results, key=lambda result: result.index)
        return [r.relevance_score if normalize else r.logit for r in results], response.usage.num_tokens

    async def _model(self, name: str | None) -> ModelInfo:
        """The served model, if a request's `model` may stand for it."""
        info = await self._served.info()
        if self._settings.strict_model and name is not None and name not in model_names(info, self._settings):
            message = f"there is no model {name[:100]!r} here; /v1/models lists the names"
            raise GatewayError(404, message, "model_not_found", param="model")
        return info

    def _options(self, search: Search, info: ModelInfo) -> CallOptions:
        options: CallOptions = {
            "top_n": search.top_n,
            "priority": _priority(search.priority, info),
            "timeout": self._settings.timeout,
            "long_documents": self._settings.long_documents,
        }
        if self._settings.cascade is not None and not search.must_fit:  # a first stage may truncate earlier
            options["cascade"] = _wide_enough(self._settings.cascade, search)
        if info.instruction is not None:
            options["instruction"] = search.instruction
        if self._settings.caller_limits:
            if search.max_tokens is not None:
                options["max_length"] = min(search.max_tokens, info.max_length or search.max_tokens)
            if search.in_parts:
                options["long_documents"] = "chunk"
        return options


def model_names(info: ModelInfo, settings: Settings) -> list[str]:
    """All names of the served model, its own first."""
    return list(dict.fromkeys([info.checkpoint or info.model, info.model, *settings.model_aliases]))


def _wide_enough(cascade: Cascade, search: Search) -> Cascade:
    """`cascade`, in which the reranker scores every document that the answer may hold."""
    count = len(search.texts)
    return replace(cascade, keep=max(number_kept(cascade.keep, count), search.top_n or count))


def _priority(given: int | None, info: ModelInfo) -> int | None:
    """The reranker's priority: callers count from 0, the reranker from 1 to the last that it has."""
    if given is None or info.priority_levels is None:
        return None
    return max(1, min(given + 1, _LAST_PRIORITY, info.priority_levels))


def _about(info: ModelInfo) -> Answered:
    return Answered(current().request_id, info.checkpoint or info.model, int(time.time()))


def _respond(content: object, timing: Timing | None = None) -> Response:
    """An answer, with the time of the whole request and, where it is known, the reranker's share."""
    parts = [("total", time.perf_counter() - current().started)]
    if timing is not None:
        parts += [("reranker", timing.server_s), ("client", timing.client_s), ("backoff", timing.backoff_s)]
    value = ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in parts)
    return json_response(content, headers={"Server-Timing": value})
