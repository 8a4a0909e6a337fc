import inspect
import pydoc
import re
import subprocess
import sys
from importlib import metadata

import pytest

import triton_rerank
from triton_rerank import AsyncRerankClient, CallOptions, RerankClient
from triton_rerank.ranking.rerank import RerankOptions


def test_all_is_sorted_and_complete():
    def constants_first(name):
        return (not name.isupper(), name.startswith("_"), name)

    assert triton_rerank.__all__ == sorted(triton_rerank.__all__, key=constants_first)
    public = {
        name for name, value in vars(triton_rerank).items() if not (name.startswith("_") or inspect.ismodule(value))
    }
    assert set(triton_rerank.__all__) - {"__version__"} == public


def test_version_is_the_distributions():
    assert triton_rerank.__version__ == metadata.version("triton-rerank")


def test_import_is_light():
    heavy = "{'numpy', 'grpc', 'tritonclient', 'torch', 'transformers', 'opentelemetry', 'google.protobuf'}"
    code = f"import sys, triton_rerank; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def methods(client):
    return {name for name, value in vars(client).items() if inspect.isfunction(value) and not name.startswith("_")}


def test_twins_have_the_same_methods():
    assert methods(RerankClient) == methods(AsyncRerankClient)
    assert inspect.signature(RerankClient) == inspect.signature(AsyncRerankClient)


@pytest.mark.parametrize("name", sorted(methods(RerankClient)))
def test_twins_have_the_same_signatures(name):
    sync, awaited = getattr(RerankClient, name), getattr(AsyncRerankClient, name)
    assert inspect.signature(sync) == inspect.signature(awaited)
    assert inspect.iscoroutinefunction(awaited)
    assert sync.__doc__
    assert awaited.__doc__


def test_help_lists_every_option_of_a_call():
    described = re.findall(r"^[\s|]+- (\w+): ", pydoc.render_doc(RerankClient.rerank), re.MULTILINE)
    assert described == list(CallOptions.__annotations__)
    assert {*RerankOptions.__dataclass_fields__, "timeout"} == set(described)


@pytest.mark.parametrize("client_class", [RerankClient, AsyncRerankClient])
def test_the_old_name_of_pairs_per_request_still_works(client_class):
    with pytest.warns(DeprecationWarning, match="request_size is now pairs_per_request"):
        client = client_class(request_size=7)
    assert client._pairs_per_request == 7


def test_another_package_with_tritons_messages_is_told():
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="grpc_predict_v2.proto", package="inference")
file.message_type.add(name="ModelInferRequest")  # as kserve and mlserver do
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
from triton_rerank import RerankClient
try:
    RerankClient()
except ImportError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("tritonclient can't be used in this process: another package")
