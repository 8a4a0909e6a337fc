import inspect
import subprocess
import sys
from importlib import metadata

import pytest

import triton_rerank
from triton_rerank import AsyncRerankClient, RerankClient


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
