"""OpenTelemetry spans and trace headers, where opentelemetry-api is installed; nothing otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class _NoSpan:
    def set_attribute(self, key: str, value: object) -> None:
        """Do nothing."""


class Tracer:
    """A client's spans in OpenTelemetry. They carry numbers and the model's name, never texts."""

    def __init__(self) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError:
            self._context = self._trace = self._propagate = None
        else:
            self._context, self._trace, self._propagate = context, trace, propagate

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, str | int]) -> Iterator[Any]:
        """A client span around a call; an error that leaves it is recorded by its type."""
        if self._trace is None:
            yield _NoSpan()
            return
        tracer = self._trace.get_tracer("triton_rerank")
        with tracer.start_as_current_span(
            name,
            kind=self._trace.SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(self._trace.StatusCode.ERROR, type(error).__name__)
                raise

    def headers(self) -> tuple[tuple[str, str], ...]:
        """W3C trace context of the current span, as gRPC metadata."""
        if self._propagate is None:
            return ()
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier)
        return tuple((key.lower(), value) for key, value in carrier.items())

    @contextmanager
    def continued(self, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """Make the trace of an incoming request the parent of the spans begun inside.

        Args:
            headers: Headers of the request, with names in lower case.

        Yields:
            The trace headers that the caller must pass on itself, where opentelemetry-api is not installed; else none.
        """
        if self._context is None or self._propagate is None:
            given = {name: headers.get(name, "") for name in ("traceparent", "tracestate")}
            yield {name: value for name, value in given.items() if value and value.isascii() and value.isprintable()}
            return
        token = self._context.attach(self._propagate.extract(headers))
        try:
            yield {}
        finally:
            self._context.detach(token)
