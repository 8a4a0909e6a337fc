"""Check for optional dependencies, and name the pip command that installs them."""

from collections.abc import Iterable
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


_FINETUNE_MODULES = (*_BUILD_MODULES, "accelerate", "bm25s", "datasets", "sentence_transformers")


def require_build_extra() -> None:
    """Check, without importing them, that the packages of the extra `export` are installed.

    Raises:
        MissingExtraError: A package is missing; the message names all that are.
    """
    _require(_BUILD_MODULES, "export")


def require_finetune_extra() -> None:
    """Check that everything a fine-tuning imports is installed, without importing it.

    Raises:
        MissingExtraError: Something is not.
    """
    _require(_FINETUNE_MODULES, "finetune")


def _require(modules: Iterable[str], extra: str) -> None:
    if missing := [name for name in modules if find_spec(name) is None]:
        raise MissingExtraError(f'{", ".join(missing)} not installed; run: pip install "triton-rerank-build[{extra}]"')
