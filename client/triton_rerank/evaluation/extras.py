"""Imports of the libraries in the extra `eval`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from triton_rerank.errors import RerankError


def require(module: str) -> Any:  # noqa: ANN401  # these libraries ship no types
    """Import a library of the extra `eval`.

    Raises:
        RerankError: The library is not installed; the message holds the pip command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise RerankError(f'{error.name} is not installed; run: pip install "triton-rerank[eval]"') from None
