"""The endpoints that only tell: health, models, metrics, the description of the interface."""

from __future__ import annotations

import time
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from triton_rerank import __version__
from triton_rerank.gateway.calls import model_names
from triton_rerank.gateway.errors import GatewayError, json_response, unavailable
from triton_rerank.gateway.metrics import CONTENT_TYPE, Metrics
from triton_rerank.gateway.openapi import document
from triton_rerank.gateway.served import Served
from triton_rerank.gateway.settings import Settings
from triton_rerank.types import ModelInfo

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# The page loads nothing from elsewhere and sends requests to its own gateway only.
_POLICY = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Pages:
    """The GET endpoints of one application."""

    def __init__(self, settings: Settings, served: Served, metrics: Metrics) -> None:
        self._settings = settings
        self._served = served
        self._metrics = metrics
        self._started = int(time.time())

    async def health(self, request: Request) -> Response:
        """200 if the reranker scores pairs, else 503."""
        await self._check_ready()
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """The same as NVIDIA NIM words it."""
        await self._check_ready()
        return json_response(_nim_health("Service is ready.", "ready"))

    async def live(self, request: Request) -> Response:
        """200 as long as the gateway runs, whether the reranker does or not."""
        return json_response(_nim_health("Service is live.", "live"))

    async def models(self, request: Request) -> Response:
        """The served model under each of its names."""
        info = await self._served.info()
        names = model_names(info, self._settings)
        return json_response({"object": "list", "data": [self._model(name, info) for name in names]})

    async def model(self, request: Request) -> Response:
        """One model. Xinference's callers ask for it before they save a configuration."""
        info, name = await self._served.info(), request.path_params["name"]
        if self._settings.strict_model and name not in model_names(info, self._settings):
            raise GatewayError(404, "there is no model of this name; /v1/models lists the names", "model_not_found")
        return json_response(self._model(name, info))

    async def info(self, request: Request) -> Response:
        """The description that text-embeddings-inference gives of itself."""
        info, settings = await self._served.info(), self._settings
        length = info.default_max_length or info.max_length or 0
        return json_response(
            {
                "model_id": info.checkpoint or info.model,
                "model_sha": info.revision,
                "model_dtype": _DTYPES.get(info.precision or "", info.precision or "float32"),
                "served_model_name": info.model,
                "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
                "max_concurrent_requests": settings.max_in_flight,
                "max_input_length": length,
                "max_batch_tokens": length * info.max_batch_size,
                "max_batch_requests": None,
                "max_client_batch_size": settings.max_documents,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": __version__,
                "sha": None,
                "docker_label": None,
            }
        )

    async def cluster_auth(self, request: Request) -> Response:
        """Whether calls need a key. Xinference's callers send theirs only if this says so, and take 404 for no."""
        if not self._settings.api_keys:
            raise GatewayError(404, "not found: no keys are needed", "not_found_error")
        return json_response({"auth": True})

    async def metrics(self, request: Request) -> Response:
        """Metrics of this gateway for Prometheus."""
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """The interface in OpenAPI 3.1."""
        return json_response(document(secured=bool(self._settings.api_keys)))

    async def docs(self, request: Request) -> Response:
        """A page that shows the interface and sends requests; it loads nothing from elsewhere."""
        page = resources.files("triton_rerank.gateway").joinpath("docs.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    def _model(self, name: str, info: ModelInfo) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "triton-rerank",
            "root": info.checkpoint or info.model,
            "max_model_len": info.default_max_length or info.max_length,
            "model_type": "rerank",  # Xinference's callers require it
        }

    async def _check_ready(self) -> None:
        if not await self._served.is_ready():
            raise unavailable("the gateway is stopping" if self._served.draining else "the probe failed")


def _nim_health(message: str, status: str) -> dict[str, str]:
    return {"object": "health.response", "message": message, "status": status}
