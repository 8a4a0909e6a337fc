"""Rows that wait to be scored, from all requests, and the micro-batches that they are taken in."""

import math
import threading
import time
from heapq import merge

import numpy as np
import triton_python_backend_utils as pb_utils
from micro_batch_cuts import cut_by_cost, padded_length

# Micro-batches taken from Triton's queue before they are needed. With fewer, the cores wait for Triton; with more,
# requests wait where Triton's priorities and queue limits do not reach them.
AHEAD = 2


class PendingRequest:
    """A request that waits for the logits of its rows.

    Args:
        rows: Token ids and attention mask of each row without padding, [length, 2].
        sender: Triton's response sender.
        timeout_us: The request's timeout; 0 for none.
    """

    def __init__(self, rows, sender, timeout_us):
        self.rows = rows
        self.logits = np.empty((len(rows), 1), np.float32)
        self.missing = len(rows)
        self.answered = False
        self._sender = sender
        self._deadline = time.monotonic() + (timeout_us / 1e6 or math.inf)

    def put(self, index, logit):
        """Take the logit of one row; the last logit answers the request."""
        self.logits[index] = logit
        self.missing -= 1
        if not self.missing:
            self._answer(pb_utils.InferenceResponse([pb_utils.Tensor("logits", self.logits)]))

    def drop_if_unwanted(self):
        """Answer with an error if the request's timeout has passed or its caller has cancelled."""
        if self.answered:
            return
        if time.monotonic() > self._deadline:
            # Triton's own words for a request that expires in the queue: clients recognise them.
            self.fail("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)
        elif self._sender.is_cancelled():
            self.fail("cancelled by the caller", pb_utils.TritonError.CANCELLED)

    def fail(self, message, code):
        """Answer with an error, unless the request is answered."""
        if not self.answered:
            self._answer(failure(message, code))

    def _answer(self, response):
        self.answered = True
        send(self._sender, response)


class RowPool:
    """Rows of all requests that wait, and the micro-batches that are made of them.

    Args:
        micro_batch_tokens: Tokens of a micro-batch at most, padding included; one row may have more.
        max_length: Longest row.
    """

    def __init__(self, micro_batch_tokens, max_length):
        self._micro_batch_tokens = micro_batch_tokens
        self._max_length = max_length
        self._groups = []  # one per execution, oldest first: lists of (row, request, index), longest row first
        self._waiting = 0  # tokens
        self._closed = False
        self._changed = threading.Condition()

    def add(self, requests):
        """Take the rows of one execution, then wait until no more than AHEAD micro-batches are waiting."""
        rows = [(row, request, index) for request in requests for index, row in enumerate(request.rows)]
        if not rows:
            return
        with self._changed:
            self._groups.append(sorted(rows, key=lambda item: len(item[0]), reverse=True))
            self._waiting += sum(len(row) for row, _, _ in rows)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting <= AHEAD * self._micro_batch_tokens)

    def take(self):
        """Wait for the next micro-batch: a list of (row, request, index), empty when the pool is closed and empty.

        The longest row of the oldest execution leads, so no row waits for ever. Rows of all executions that are next to
        it in length join it, as many as keep the cost of all waiting rows lowest.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._groups or self._closed)
            if not self._groups:
                return []
            longest = len(self._groups[0][0][0])
            fitting = list(
                merge(
                    *([item for item in group if len(item[0]) <= longest] for group in self._groups),
                    key=lambda item: len(item[0]),
                    reverse=True,
                )
            )
            lengths = [padded_length(len(row), self._max_length) for row, _, _ in fitting]
            (_, end), *_ = cut_by_cost(lengths, self._micro_batch_tokens)
            taken = fitting[:end]
            keys = {(id(request), index) for _, request, index in taken}
            groups = ([item for item in group if (id(item[1]), item[2]) not in keys] for group in self._groups)
            self._groups = [group for group in groups if group]
            self._waiting -= sum(len(row) for row, _, _ in taken)
            self._changed.notify_all()
            return taken

    def close(self):
        """Let `take` return an empty list once all rows are taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def send(sender, response):
    """Send the one response of a request."""
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def failure(message, code):
    """An error response to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
