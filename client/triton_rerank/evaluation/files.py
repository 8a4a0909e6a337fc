"""Files that evaluations and bulk jobs write: locks, whole replacement, errors that name the path; extras."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from triton_rerank.errors import InvalidRequestError, RerankError

LOCK_NAME = ".lock"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError that has none: errors of `read` and `write`, such as a full disk, name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a text file that replaces `path` when the block succeeds. After an error `path` is unchanged."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with replacing(path) as file:
        file.write(text)


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Create a folder for results and lock it until the block ends.

    Raises:
        InvalidRequestError: Another process holds the lock.
        OSError: The folder cannot be created or is read-only; the error names the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    with path.open("ab") as file:
        lock(file, path)
        yield folder


def lock(file: IO[bytes], path: Path) -> None:
    """Lock an open file until it is closed.

    Windows has no `flock`; there the file stays unlocked.

    Raises:
        InvalidRequestError: Another process, or another open file of this one, holds the lock.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequestError(
            f"{path}: another process is writing to this folder; wait for its end or choose another one"
        ) from None
    except OSError:  # some network file systems have no locks
        return


def sync_folder(folder: Path) -> None:
    """Make the names of new files durable. Windows cannot open folders and needs no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require(module: str) -> Any:  # noqa: ANN401  # these libraries ship no types
    """Import a library of an extra.

    Raises:
        RerankError: The library is not installed; the message holds the pip command.
    """
    extra = {"pyarrow": "bulk", "ray": "ray"}.get(module.partition(".")[0], "eval")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise RerankError(f'{error.name} is not installed; run: pip install "triton-rerank[{extra}]"') from None
