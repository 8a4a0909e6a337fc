"""Check for optional dependencies, and name the pip command that installs them."""

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
    """Check, without importing them, that the packages of the extra `export` are installed.

    Raises:
        MissingExtraError: A package is missing; the message names all that are.
    """
    missing = [name for name in _BUILD_MODULES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'{", ".join(missing)} not installed; run: pip install "triton-rerank-build[export]"')
