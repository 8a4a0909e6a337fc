"""Vectors of texts, once for each text: a cache of limited size."""

import threading
from collections import OrderedDict

# What Python holds for an entry beside its vectors: the key, the array's header, a node in the order of use.
ENTRY_BYTES = 500


class Encoded:
    """What is known of a text once it is encoded.

    Attributes:
        vectors: Of the tokens that are scored, [num_vectors, dim] float16, or as `int8_vectors` makes them.
        num_tokens: Of its row, special tokens included.
        truncated: Whether the row lacks some of the text.
    """

    __slots__ = ("num_tokens", "truncated", "vectors")

    def __init__(self, vectors, num_tokens, truncated):
        self.vectors, self.num_tokens, self.truncated = vectors, num_tokens, truncated

    @property
    def bytes(self):
        """Memory that it takes in a cache."""
        return self.vectors.nbytes + ENTRY_BYTES


class VectorCache:
    """Encoded texts by key, least recently used first; never more bytes than `limit_bytes`. Shared by threads.

    Attributes:
        encoded: Entries that `put` has kept so far.
        evicted: Entries that it has evicted so far.
    """

    def __init__(self, limit_bytes):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self.encoded = self.evicted = 0
        self._entries = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys):
        """Those of `keys` that are here, {key: Encoded}; they are now the most recently used."""
        with self._lock:
            found = {key: entry for key in keys if (entry := self._entries.get(key)) is not None}
            for key in found:
                self._entries.move_to_end(key)
        return found

    def put(self, entries):
        """Keep entries, {key: Encoded}; returns the number of entries evicted for them."""
        evicted = 0
        with self._lock:
            for key, entry in entries.items():
                if entry.bytes > self.limit_bytes or key in self._entries:
                    continue
                while self.bytes + entry.bytes > self.limit_bytes:
                    _, oldest = self._entries.popitem(last=False)
                    self.bytes -= oldest.bytes
                    evicted += 1
                self._entries[key] = entry
                self.bytes += entry.bytes
                self.encoded += 1
            self.evicted += evicted
        return evicted

    def restore(self, entries):
        """Keep entries of an earlier cache, as if they had been used before all that are here.

        Args:
            entries: {key: Encoded}, least recently used first.

        Returns:
            The number of entries taken, the most recently used that fit, and of those that do not fit.
        """
        taken = seen = 0
        with self._lock:
            for key, entry in reversed(entries.items()):
                if key not in self._entries:
                    if self.bytes + entry.bytes > self.limit_bytes:
                        break
                    self._entries[key] = entry
                    self._entries.move_to_end(key, last=False)
                    self.bytes += entry.bytes
                    taken += 1
                seen += 1
        return taken, len(entries) - seen

    def entries(self):
        """All entries, {key: Encoded}, least recently used first."""
        with self._lock:
            return dict(self._entries)

    def describe(self):
        """Its state in a few numbers."""
        return {
            "texts": len(self._entries),
            "bytes": self.bytes,
            "limit_bytes": self.limit_bytes,
            "encoded": self.encoded,
            "evicted": self.evicted,
        }
