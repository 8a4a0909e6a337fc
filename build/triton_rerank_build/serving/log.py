"""The log file of a tritonserver: one writer per file, and the lines that explain a failure."""

import contextlib
import fcntl
import os
import re
import tempfile
from pathlib import Path
from typing import BinaryIO

from triton_rerank_build.errors import ServerStartError

TAIL_LINES = 25
TAIL_BYTES = 1 << 16
# Written where a process ends: by Triton's signal handler, the C++ runtime, the dynamic loader and the supervisor.
CRASH = re.compile(
    r"Signal \((?!15\))\d+\) received|terminate called|  what\(\):|.*error while loading shared lib|supervisor: "
)
ERROR = re.compile(r"E\d{4} |error:|\[libprotobuf ERROR")
# Triton reports these as errors on every machine without a GPU.
HARMLESS = re.compile(r"E\d{4} .*(CudaDriverHelper has not been initialized|unable to create stream for)")


def open_log(path: Path | None) -> BinaryIO:
    """Open and empty a log file; a temporary one without a name if `path` is None.

    Raises:
        ServerStartError: Another server writes to the file, or it can't be written.
    """
    if path is None:
        return tempfile.TemporaryFile()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a+b")
    except OSError as error:
        raise ServerStartError(f"the log {path} can't be written ({error.strerror}); choose another file") from error
    try:
        # The server inherits the file and so holds the lock until it has ended.
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise ServerStartError(f"another server writes to the log {path}; choose another file") from None
    except OSError:  # a file system without locks
        pass
    log.truncate(0)
    return log


def tail(log: BinaryIO, lines: int = TAIL_LINES) -> str:
    """The last errors and crashes in a log, or its last lines if it has none. Triton's tables are left out."""
    text = _end_of(log)
    told = [line for line in text.splitlines() if line.strip() and line[0] not in "+|" and not HARMLESS.match(line)]
    errors = [line for line in told if ERROR.match(line) or CRASH.match(line)]
    return "\n".join((errors or told)[-lines:])


def last_crash(log: BinaryIO) -> str | None:
    """What the last crash wrote, "terminate called after ...; what(): ...", or None."""
    # The supervisor's line follows those of the process that ended.
    runs = re.split(r"^supervisor: .*$", _end_of(log), flags=re.M)
    told = [line.strip() for line in runs[-2 if len(runs) > 1 else -1].splitlines() if CRASH.match(line)]
    return "; ".join(told) or None


def _end_of(log: BinaryIO) -> str:
    with contextlib.suppress(ValueError, OSError):  # closed meanwhile
        end = os.fstat(log.fileno()).st_size
        return os.pread(log.fileno(), TAIL_BYTES, max(0, end - TAIL_BYTES)).decode(errors="replace")
    return ""
