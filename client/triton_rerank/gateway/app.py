"""The ASGI application: routes, and the layers around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triton_rerank.async_client import AsyncRerankClient
from triton_rerank.errors import InvalidRequestError, RerankError
from triton_rerank.gateway.calls import Calls
from triton_rerank.gateway.errors import GatewayError, error_response, from_client
from triton_rerank.gateway.metrics import Metrics
from triton_rerank.gateway.observed import Observed
from triton_rerank.gateway.pages import Pages
from triton_rerank.gateway.reading import Unread
from triton_rerank.gateway.record import current
from triton_rerank.gateway.served import Served
from triton_rerank.gateway.settings import Settings


class _Ending(Convertor[str]):
    """A path whose last segment is one of some names: users write /v1/v2/rerank, and proxies add prefixes."""

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _EndingRerank(_Ending):
    regex = "(?:[^/]*/)*(?:rerank|reranking|ranking|invocations)/?"


class _EndingScore(_Ending):
    regex = "(?:[^/]*/)*score/?"


register_url_convertor("ending_rerank", _EndingRerank())
register_url_convertor("ending_score", _EndingScore())


def create_app(client: AsyncRerankClient, settings: Settings | None = None) -> Starlette:
    """An ASGI application that answers rerank calls of many kinds through `client`.

    Request ids and traces reach the server if the client's `metadata` is `triton_rerank.gateway.metadata`, or calls it.
    The application closes the client when it ends.

    Args:
        client: For the reranker. With `max_retries` of 0 or 1 its retries do not multiply with those of the callers.
        settings: Limits and rules.

    Raises:
        InvalidRequestError: Both stages of the cascade are the same model.
    """
    settings = settings or Settings()
    if settings.cascade is not None and settings.cascade.first == client.model:
        raise InvalidRequestError(f"the cascade's first stage is {client.model!r}, the reranker itself; name another")
    served = Served(client, settings.max_in_flight, settings.cascade)
    metrics = Metrics(served)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await client.close()

    layers = [Middleware(Observed, metrics=metrics), Middleware(Unread)]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "server-timing", "retry-after"],
            )
        )
    app = Starlette(
        routes=_routes(Calls(settings, served), Pages(settings, served, metrics)),
        middleware=layers,
        exception_handlers=dict.fromkeys((GatewayError, RerankError, HTTPException), _failed),
        lifespan=lifespan,
    )
    app.state.served = served
    return app


def _routes(calls: Calls, pages: Pages) -> list[Route]:
    """The endpoint of each path."""
    answers: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/health": pages.health,
        "/ping": pages.health,
        "/v1/health/ready": pages.ready,
        "/v1/health/live": pages.live,
        "/v1/models": pages.models,
        "/models": pages.models,
        "/v1/models/{name:path}": pages.model,
        "/models/{name:path}": pages.model,
        "/info": pages.info,
        "/v1/cluster/auth": pages.cluster_auth,
        "/metrics": pages.metrics,
        "/openapi.json": pages.openapi,
        "/docs": pages.docs,
    }
    return [
        Route("/{path:ending_rerank}", _noted(calls.rerank), methods=["POST"]),
        Route("/{path:ending_score}", _noted(calls.score), methods=["POST"]),
        *(Route(path, _noted(endpoint), methods=["GET"]) for path, endpoint in answers.items()),
    ]


def _noted(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """`endpoint`, named in the record of each request."""
    name: str = getattr(endpoint, "__name__", "other")

    async def serve(request: Request) -> Response:
        current().endpoint = name
        return await endpoint(request)

    return serve


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, RerankError):
        error = from_client(error)
    elif isinstance(error, HTTPException):  # Starlette's: no such path, or another method
        phrase = HTTPStatus(error.status_code).phrase.lower()
        message = f"{phrase}: {request.method} on this path; GET /docs lists what there is"
        error = GatewayError(error.status_code, message, "not_found_error", headers=error.headers)
    if not isinstance(error, GatewayError):
        raise error
    return error_response(error, current())
