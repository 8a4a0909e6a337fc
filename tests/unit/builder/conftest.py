"""Exports of tiny checkpoints that several unit tests read."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from support.tiny_models import tiny_checkpoint
from triton_rerank_build import export


@pytest.fixture(scope="session")
def fp16_repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> a repository with its tiny checkpoint at fp16, exported once; tests that change it take a copy."""

    @cache
    def exported(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        export(str(tiny_checkpoint(folder / family, family)), repository=folder / "served", precision="fp16")
        return folder / "served"

    return exported
