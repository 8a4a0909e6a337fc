import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

import triton_rerank as tr
from triton_rerank.errors import error_from_status


@pytest.mark.parametrize(
    ("status", "message", "kind", "also"),
    [
        ("INVALID_ARGUMENT", "max_length is 9000, the limit is 8192", tr.InvalidRequestError, ValueError),
        ("NOT_FOUND", "Request for unknown model: 'x' is not found", tr.ModelNotFoundError, tr.RerankError),
        (
            "NOT_FOUND",
            "Request for unknown model: 'x' has no available versions",
            tr.ServerUnavailableError,
            tr.RerankError,
        ),
        ("UNAVAILABLE", "failed to connect to all addresses", tr.ServerUnavailableError, ConnectionError),
        ("UNAVAILABLE", "Socket closed", tr.ServerUnavailableError, ConnectionError),
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", tr.ServerOverloadedError, ConnectionError),
        ("UNAVAILABLE", "Request timeout expired", tr.ServerOverloadedError, ConnectionError),
        ("RESOURCE_EXHAUSTED", "too many streams", tr.ServerOverloadedError, ConnectionError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", tr.InvalidRequestError, ValueError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", tr.RequestTimeoutError, TimeoutError),
        ("CANCELLED", "Locally cancelled by application!", tr.RequestCancelledError, tr.RerankError),
        ("INTERNAL", "onnx runtime error 6", tr.InferenceError, tr.RerankError),
        # Triton 2.51, python_be.cc
        ("INTERNAL", "Stub process 'tokenizer_0_0' is not healthy.", tr.ServerUnavailableError, ConnectionError),
        (
            "INTERNAL",
            "Failed to process the request(s) for model instance 'tokenizer_0_0', message: Stub process "
            "'tokenizer_0_0' is not healthy.",
            tr.ServerUnavailableError,
            ConnectionError,
        ),
        ("INVALID_ARGUMENT", "the query is not healthy", tr.InvalidRequestError, ValueError),
        ("INTERNAL", "Received RST_STREAM with error code 2", tr.ServerUnavailableError, ConnectionError),
        ("UNKNOWN", "Stream removed", tr.InferenceError, tr.RerankError),
        ("UNIMPLEMENTED", None, tr.InferenceError, tr.RerankError),
    ],
)
def test_every_status_has_its_error(status, message, kind, also):
    error = error_from_status(status, message, "host:8001")
    assert type(error) is kind
    assert isinstance(error, also)
    assert str(error).startswith(f"host:8001: {message or 'no reason given'}")


def test_a_full_queue_is_told_with_its_remedies_and_without_an_unknown_request_id():
    details = "[request id: <id_unknown>] Exceeds maximum queue size"
    error = error_from_status("UNAVAILABLE", details, "host:8001")
    assert str(error) == (
        "host:8001: Exceeds maximum queue size; send fewer calls at once, add servers, or raise max_queue_size "
        "(on a CPU max_wait_s)"
    )


def test_a_full_shared_memory_gets_a_remedy():
    # The beginning of Triton 2.51's message.
    said = "in ensemble 'reranker', Failed to increase the shared memory pool size for key 'x' to 1048576 bytes."
    error = error_from_status("INTERNAL", said, "gpu-1:8001")
    assert type(error) is tr.InferenceError
    assert "the server's /dev/shm is full: enlarge it" in str(error)


def test_a_dead_address_gets_a_remedy():
    error = error_from_status("UNAVAILABLE", "failed to connect to all addresses", "host:8001")
    assert "is Triton running there?" in str(error)


def test_tritonclients_own_status_text_is_understood():
    with InferenceServerClient("127.0.0.1:1") as client, pytest.raises(InferenceServerException) as caught:
        client.is_server_live()
    error = error_from_status(caught.value.status(), caught.value.message(), "127.0.0.1:1")
    assert type(error) is tr.ServerUnavailableError
