"""Requests that wait for an answer."""

import threading

import triton_python_backend_utils as pb_utils
from encoding import Text


class Call:
    """A request, and what is known of its texts.

    Args:
        pairs: A `PairRequest`.
        sender: Triton's response sender.
        query, document: The `Side`s.

    Attributes:
        queries: Key of each pair's query.
        documents: Key of each pair's document.
        keys: All of these.
        found: `Encoded` or `EncoderError` by key.
    """

    def __init__(self, pairs, sender, query, document):
        self.pairs, self._sender = pairs, sender
        self._query, self._document = query, document
        self._query_keys = {cell: query.key(cell, pairs.query_max_length) for cell in pairs.queries}
        self.queries = [self._query_keys[cell] for cell in pairs.query_cells]
        self.documents = [document.key(cell, pairs.max_length) for cell in pairs.document_cells]
        self.keys = {*self.queries, *self.documents}
        self.found = {}
        self.answered = False

    @property
    def complete(self):
        """Whether all of its texts are found."""
        return self.keys <= self.found.keys()

    def take(self, entries):
        """Take those of `entries`, {key: Encoded or EncoderError}, that it needs."""
        self.found |= {key: entries[key] for key in entries.keys() & self.keys}

    def missing_queries(self):
        """The queries that are not found, {key: Text}."""
        texts = zip(self._query_keys.values(), self.pairs.queries.values(), strict=True)
        return self._missing(texts, self._query, self.pairs.query_max_length)

    def missing_documents(self):
        """The documents that are not found, {key: Text}."""
        texts = zip(self.documents, self.pairs.documents, strict=True)
        return self._missing(texts, self._document, self.pairs.max_length)

    def _missing(self, texts, side, max_length):
        return {key: Text(side, text, max_length) for key, text in texts if key not in self.found}

    def send(self, response):
        """Send the response, unless it is sent."""
        if self.answered:
            return
        self.answered = True
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Lane:
    """Calls that wait for a worker. Shared by threads."""

    def __init__(self):
        self._calls, self._closed = [], False
        self._changed = threading.Condition()

    def add(self, call):
        """Let a call wait."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify()

    def take(self):
        """Wait for calls and take all of them; none once the lane is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed)
            taken, self._calls = self._calls, []
            return taken

    def close(self):
        """Let `take` end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
