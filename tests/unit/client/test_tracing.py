import logging

import pytest
from grpc import StatusCode
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.fake_triton import FakeTriton, refuse
from triton_rerank import InferenceError


@pytest.fixture(scope="module")
def exporter():
    # OpenTelemetry allows one provider in a process.
    found = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    trace.set_tracer_provider(provider)
    return found


@pytest.fixture
def client(client_class, exporter):
    exporter.clear()
    with FakeTriton() as server, client_class(server.url) as made:
        made.server = server
        yield made


def test_a_call_is_a_client_span_with_numbers_and_no_texts(client, exporter):
    client.rerank("private query", ["private document"] * 40)
    (span,) = exporter.get_finished_spans()
    assert span.name == "triton_rerank.rerank"
    assert span.kind is trace.SpanKind.CLIENT
    assert dict(span.attributes) == {
        "triton_rerank.model": "reranker",
        "triton_rerank.requests": 2,
        "triton_rerank.retries": 0,
    }
    assert "private" not in span.to_json()


def test_the_trace_travels_to_the_server(client, exporter):
    with trace.get_tracer("test").start_as_current_span("caller") as caller:
        client.rerank("q", ["1"])
    header = client.server.metadata[0]["traceparent"]
    assert f"{caller.get_span_context().trace_id:032x}" in header


def test_a_failure_marks_its_span_by_type_alone(client, exporter, caplog):
    client.server.faults.append(refuse(StatusCode.INTERNAL, "private words"))
    with caplog.at_level(logging.DEBUG, "triton_rerank"), pytest.raises(InferenceError):
        client.rerank("q", ["1"])
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == "InferenceError"
    assert span.events == ()
    assert "rerank InferenceError in" in caplog.text
