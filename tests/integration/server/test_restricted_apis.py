"""The APIs that deploy/tritonserver.sh restricts, called on a real server started with that script's options."""

import json
import urllib.error
import urllib.request

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from support import quick_server
from support.deployment import server_options
from triton_rerank import RerankClient

KEY = "tell=nobody"
GRPC_HEADER, HTTP_HEADER = "triton-grpc-protocol-rerank-admin-key", "rerank-admin-key"
RESTRICTED_GRPC = {
    "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="reranker"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="reranker"),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=64),
    "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "CudaSharedMemoryRegister": service_pb2.CudaSharedMemoryRegisterRequest(name="a", byte_size=64),
    "CudaSharedMemoryUnregister": service_pb2.CudaSharedMemoryUnregisterRequest(),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}
RESTRICTED_HTTP = [
    ("POST", "repository/index"),
    ("POST", "repository/models/reranker/load"),
    ("POST", "repository/models/reranker/unload"),
    ("GET", "systemsharedmemory/status"),
    ("POST", "systemsharedmemory/region/a/register"),
    ("POST", "systemsharedmemory/unregister"),
    ("GET", "cudasharedmemory/status"),
    ("POST", "cudasharedmemory/region/a/register"),
    ("GET", "trace/setting"),
    ("POST", "trace/setting"),
    ("GET", "models/reranker/trace/setting"),
    ("GET", "logging"),
    ("POST", "logging"),
]
OPEN_HTTP = ["health/live", "health/ready", "models/reranker", "models/reranker/config", "models/reranker/stats"]


@pytest.fixture(scope="module")
def restricted(tiny_repository):
    """A server as the container starts it."""
    with quick_server(tiny_repository, arguments=server_options(KEY)) as server:
        yield server


@pytest.fixture
def stub(restricted):
    with grpc.insecure_channel(restricted.grpc_url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def http_status(server, method, path, headers):
    data = b"{}" if method == "POST" else None
    request = urllib.request.Request(f"http://{server.http_url}/v2/{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("name", RESTRICTED_GRPC)
@pytest.mark.parametrize("metadata", [(), ((GRPC_HEADER, "guess"),), ((GRPC_HEADER, ""),)])
def test_grpc_refuses_callers_without_the_key(stub, name, metadata):
    with pytest.raises(grpc.RpcError, match=f"restricted, expecting header '{GRPC_HEADER}'"):
        getattr(stub, name)(RESTRICTED_GRPC[name], metadata=metadata, timeout=10)


@pytest.mark.parametrize(("method", "path"), RESTRICTED_HTTP)
@pytest.mark.parametrize("headers", [{}, {HTTP_HEADER: "guess"}])
def test_http_refuses_callers_without_the_key(restricted, method, path, headers):
    status, text = http_status(restricted, method, path, headers)
    assert status == 403
    assert f"restricted, expecting header '{HTTP_HEADER}'" in text


def test_callers_with_the_key_are_let_through(restricted, stub):
    index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=((GRPC_HEADER, KEY),), timeout=10)
    assert {model.name for model in index.models} >= {"reranker", "tokenizer", "cross_encoder"}
    status, text = http_status(restricted, "POST", "repository/index", {HTTP_HEADER: KEY})
    assert status == 200
    assert {model["name"] for model in json.loads(text)} >= {"reranker", "tokenizer", "cross_encoder"}


def test_what_clients_and_monitoring_need_stays_open(restricted, stub):
    with RerankClient(restricted.grpc_url) as client:
        assert client.is_ready()
        assert len(client.rerank("flu", ["Wash your hands often.", "Flutes are made of wood."])) == 2
    assert stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=10).version
    statistics = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)
    assert {model.name for model in statistics.model_stats} >= {"reranker", "tokenizer", "cross_encoder"}
    for path in OPEN_HTTP:
        assert http_status(restricted, "GET", path, {})[0] == 200, path


def test_the_local_server_closes_what_reaches_files_and_shared_memory(server):
    index, load, *_ = RESTRICTED_GRPC
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, message in RESTRICTED_GRPC.items():
            if not name.startswith("Repository"):
                with pytest.raises(grpc.RpcError, match=f"restricted, expecting header '{GRPC_HEADER}'"):
                    getattr(stub, name)(message, timeout=10)
        assert len(getattr(stub, index)(RESTRICTED_GRPC[index], timeout=10).models) == 3
        with pytest.raises(grpc.RpcError, match="explicit model load / unload is not allowed"):
            getattr(stub, load)(RESTRICTED_GRPC[load], timeout=10)
    for method, path in RESTRICTED_HTTP:
        if not path.startswith("repository"):
            assert http_status(server, method, path, {})[0] == 403, path


def test_without_a_key_in_the_environment_it_is_random():
    (one,), (other,) = (
        [option for option in server_options(key) if option.startswith("--grpc-restricted-protocol")]
        for key in (None, "")
    )
    assert one != other
    for option in (one, other):
        assert len(option.rpartition("=")[2]) == 32
