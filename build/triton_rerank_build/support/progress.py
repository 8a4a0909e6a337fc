"""Tell what long work is doing: numbered steps with their seconds, and progress bars.

The package logs and never prints. The command line sends these records to stderr; a program that calls the API
receives them through `logging.getLogger("triton_rerank_build")`.
"""

import ctypes
import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

logger = logging.getLogger("triton_rerank_build")

Item = TypeVar("Item")


class Steps:
    """Number the steps of one job.

    Args:
        total: Number of steps that the job announces.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Log `title`, run the block, then log its seconds."""
        self._done += 1
        logger.info("[%d/%d] %s ...", self._done, self._total, title)
        release_memory()
        started = time.perf_counter()
        yield
        logger.info("      %.1f s", time.perf_counter() - started)


def bar(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Iterate over `items` with a progress bar, which shows on a terminal only."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    yield from tqdm(items, desc=title, disable=None, leave=False)


def release_memory() -> None:
    """Return freed memory to the system.

    glibc keeps freed blocks of some megabytes, such as a model's layers and activations. Without this, exporting the
    shape of bge-reranker-v2-m3 peaks at 8.6 GB instead of 5.2 GB.
    """
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc only
        trim(0)


def format_bytes(num_bytes: float) -> str:
    """Two decimals in the largest fitting unit: 512 B, 5.63 MB, 2.27 GB."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
