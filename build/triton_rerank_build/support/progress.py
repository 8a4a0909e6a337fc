"""Say what long work is doing: numbered steps with their seconds and peak memory, and bars for bytes.

The package logs; it never prints. The command line sends these records to stderr, a program that calls
the API hears them through `logging.getLogger("triton_rerank_build")`.
"""

import ctypes
import gc
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger("triton_rerank_build")

Item = TypeVar("Item")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Steps:
    """Count the steps of one job.

    Args:
        total: Number of steps that the job will announce.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce `title`, run the block, then log its seconds and its peak memory."""
        self._done += 1
        logger.info("[%d/%d] %s ...", self._done, self._total, title)
        release_memory()
        reset_peak_memory()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        logger.info("      %.1f s, peak memory %s", seconds, format_bytes(peak_memory_bytes()))


def bar(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Iterate over `items` behind a progress bar, which shows only on a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    yield from tqdm(items, desc=title, disable=None, leave=False)


def reset_peak_memory() -> None:
    """Start a new peak, where the kernel allows it; otherwise the peak of the whole process is reported."""
    try:
        _CLEAR_REFS.write_text("5")  # 5 = reset VmHWM, see proc(5)
    except OSError:
        logger.debug("cannot reset the peak memory of this process")


def release_memory() -> None:
    """Give freed memory back to the system.

    The C library keeps what was freed in pieces of some megabytes, as the layers of a model are; without this the
    next step's peak would stand on a gigabyte that nobody uses.
    """
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc only
        trim(0)


def peak_memory_bytes() -> int:
    """Resident peak since `reset_peak_memory`, file mappings included."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        logger.debug("cannot read %s", _STATUS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_bytes(num_bytes: float) -> str:
    """Two significant places in the unit a reader expects: 512 B, 5.63 MB, 2.27 GB."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
