"""Exports of tiny checkpoints for the builder's unit tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.tiny_exports import TinyExports


@pytest.fixture(scope="session")
def fp16_repository(tiny_exports: TinyExports) -> Callable[[str], Path]:
    """Family -> a repository with its tiny checkpoint at fp16. Tests that change it take a copy."""
    return lambda family: tiny_exports(family, "fp16").repository
