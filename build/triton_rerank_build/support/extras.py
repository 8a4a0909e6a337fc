"""Ask for an optional dependency, and name the pip command that brings it when it is missing."""

from importlib.util import find_spec

from triton_rerank_build.errors import MissingExtraError

_BUILD_MODULES = (
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)


def require_build_extra() -> None:
    """Check that everything an export imports is installed, without importing it.

    Raises:
        MissingExtraError: Something is not.
    """
    missing = [name for name in _BUILD_MODULES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'{", ".join(missing)} not installed; run: pip install "triton-rerank-build[export]"')
