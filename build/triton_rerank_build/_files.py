"""Hashes and folders: the small file operations that several steps share."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

CACHE_VARIABLE = "TRITON_RERANK_CACHE"

_CHUNK_BYTES = 1 << 22


def sha256_file(path: Path) -> str:
    """Hex digest of a file, with a progress bar on a terminal when it is large."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    digest = hashlib.sha256()
    size = path.stat().st_size
    # disable=None hides the bar where stderr is no terminal; below 1 GB it would only flicker.
    hide = True if size < 1 << 30 else None
    with (
        path.open("rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"sha256 {path.name}", disable=hide, leave=False) as bar,
    ):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def sha256_texts(parts: Iterable[str]) -> str:
    """One digest for a sequence of short texts; their order and borders matter."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where downloads and converted checkpoints are kept, outside any checkout.

    $TRITON_RERANK_CACHE, else $XDG_CACHE_HOME/triton-rerank, else ~/.cache/triton-rerank.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "triton-rerank"
