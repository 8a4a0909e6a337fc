"""Tests that need an NVIDIA GPU; elsewhere they are skipped, each with its reason."""

import shutil
from pathlib import Path

import pytest
import torch

from support.tiny_models import tiny_checkpoint
from triton_rerank_build import export


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """The name of the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU, or a PyTorch without CUDA; on a machine with one run tests/gpu/run.sh")
    return torch.cuda.get_device_name()


@pytest.fixture(scope="session")
def cuda_provider():
    """ONNX Runtime's CUDA provider."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA; install onnxruntime-gpu in the place of onnxruntime")
    return "CUDAExecutionProvider"


@pytest.fixture(scope="session")
def trtexec():
    """NVIDIA's trtexec, which only TensorRT's own packages and containers carry."""
    if shutil.which("trtexec") is None:
        pytest.skip("trtexec is not on PATH; run tests/gpu/run.sh in NVIDIA's TensorRT container")


@pytest.fixture(scope="session", params=["bert", "roberta", "xlm-roberta"])
def tiny(request, tmp_path_factory):
    """A tiny checkpoint, installed at fp16."""
    folder = tmp_path_factory.mktemp(request.param)
    export(str(tiny_checkpoint(folder / "checkpoint", request.param)), repository=folder / "served", precision="fp16")
    return folder / "served"


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo reranker, installed at fp16."""
    folder = tmp_path_factory.mktemp("demo") / "served"
    export("demo", repository=folder, precision="fp16")
    return folder
