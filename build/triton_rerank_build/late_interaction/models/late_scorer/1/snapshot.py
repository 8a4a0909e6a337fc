"""The cache in a file, so that it survives a restart.

The file is a header line of JSON, the entries' table, their vectors one after another, and a digest of all of it. The
header names what the vectors depend on: the digest of the manifest, and the type of the vectors. A file with another
header, or whose digest is wrong, is not used. Nothing of a file is used before all of it was checked.
"""

import hashlib
import json
import os
import threading
import time

import numpy as np
from vector_cache import Encoded

FORMAT = 1
# An entry's row in the table; its vectors are [num_vectors, width] of `vector_type`.
ENTRY = np.dtype(
    [
        ("key", "V16"),
        ("num_tokens", "<i4"),
        ("truncated", "?"),
        ("fp16", "?"),
        ("num_vectors", "<i4"),
        ("width", "<i4"),
    ]
)


class SnapshotError(ValueError):
    """The file can't be used; the message says why."""


class Snapshot:
    """A file of cached entries.

    Args:
        path: The file. It is replaced at once, never half written.
        settings: What the vectors depend on; a file with other settings is refused.
    """

    def __init__(self, path, settings):
        self.path = path
        self.header = json.dumps({"format": FORMAT, **settings}, sort_keys=True).encode() + b"\n"

    def write(self, entries):
        """Write entries, {key: Encoded}; returns the size of the file."""
        table = np.empty(len(entries), ENTRY)
        for row, (key, entry) in enumerate(entries.items()):
            vectors = entry.vectors
            table[row] = (key, entry.num_tokens, entry.truncated, vectors.dtype == np.float16, *vectors.shape)
        # One name, so that a killed server leaves one such file at most.
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        digest = hashlib.sha256()
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch(mode=0o600)  # vectors tell much of their texts
            with temporary.open("wb") as file:
                for part in (self.header, np.int64(len(table)), table, *(entry.vectors for entry in entries.values())):
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def read(self):
        """The entries of the file, {key: Encoded}, and its size; {} and 0 without a file.

        Raises:
            SnapshotError: The file is damaged, or of another model or another release.
            OSError: It can't be read.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return {}, 0
        with file:
            reader = _Reader(file, os.fstat(file.fileno()).st_size)
            if file.readline(4096) != self.header:
                raise SnapshotError("it is of another model, of other settings or of another release")
            reader.digest.update(self.header)
            count = int(reader.array(1, np.dtype("<i8"))[0])
            table = reader.array(count, ENTRY)
            entries = {}
            for row in table:
                dtype = np.dtype("<f2") if row["fp16"] else np.dtype("i1")
                vectors = reader.array(int(row["num_vectors"]) * int(row["width"]), dtype)
                shaped = vectors.reshape(row["num_vectors"], row["width"])
                entries[row["key"].tobytes()] = Encoded(shaped, int(row["num_tokens"]), bool(row["truncated"]))
            if file.read() != reader.digest.digest():
                raise SnapshotError("it is damaged")
            return entries, reader.size


class _Reader:
    """Arrays of a file, which are counted in a digest."""

    def __init__(self, file, size):
        self.file, self.size = file, size
        self.digest = hashlib.sha256()

    def array(self, count, dtype):
        """The next `count` elements."""
        if not 0 <= count * dtype.itemsize <= self.size:
            raise SnapshotError("it is damaged")
        array = np.empty(count, dtype)
        if self.file.readinto(array.view(np.uint8)) != array.nbytes:
            raise SnapshotError("it is damaged")
        self.digest.update(array)
        return array


class SnapshotKeeper:
    """Reads the snapshot into a cache in the background, then writes it again and again while the cache changes.

    Args:
        snapshot: The file.
        cache: A `VectorCache`.
        interval_s: Seconds between two looks whether the cache has changed.
        metrics: `CacheMetrics`.
        log_info, log_warning: Functions that take a line.
    """

    def __init__(self, snapshot, cache, interval_s, metrics, log_info, log_warning):
        self._snapshot, self._cache, self._interval_s, self._metrics = snapshot, cache, interval_s, metrics
        self._log_info, self._log_warning = log_info, log_warning
        self._written = cache.encoded
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="snapshot", daemon=True)
        self._thread.start()

    def stop(self):
        """Write what has changed, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self):
        self._read()
        while not self._stop.wait(self._interval_s):
            self._write()
        self._write()

    def _read(self):
        start = time.monotonic()
        try:
            entries, size = self._snapshot.read()
        except (SnapshotError, OSError) as error:
            self._log_warning(f"{self._snapshot.path} is not used: {error}; the cache starts empty")
            return
        if not entries:
            return
        taken, too_many = self._cache.restore(entries)
        self._metrics.restored(taken, size)
        left_out = f"; {too_many} more do not fit" if too_many else ""
        seconds = time.monotonic() - start
        self._log_info(f"{self._snapshot.path}: {taken} texts are cached again after {seconds:.1f} s{left_out}")

    def _write(self):
        encoded = self._cache.encoded
        if encoded == self._written:
            return
        start = time.monotonic()
        try:
            entries = self._cache.entries()
            size = self._snapshot.write(entries)
        except OSError as error:
            self._log_warning(f"{self._snapshot.path} can't be written: {error}")
            return
        self._written = encoded
        self._metrics.written(size)
        self._log_info(f"{self._snapshot.path}: wrote {len(entries)} texts in {time.monotonic() - start:.1f} s")
