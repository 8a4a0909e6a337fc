"""Rows that wait to be scored, from all requests: which requests are refused, and which rows run next together."""

import math
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils
from micro_batch_cuts import cut_by_cost, padded_length

# Levels are those of a Triton queue: 2 * priority for calls that wait to begin, the level before it for further
# requests of calls that have begun.
DEFAULT_LEVEL = 4
# Further requests of a call may wait this many times as long as those that open one: refusing them wastes what the call
# has cost so far.
BEGUN_ROOM = 10
# Requests are combined until they hold this many micro-batches: enough for rows of similar length to meet.
COMBINED = 4
# Of the weight of a micro-batch in the measured speed, that the next one leaves it.
DECAY = 0.9


class PendingRequest:
    """A request that waits for the logits of its rows.

    Args:
        rows: Token ids and attention mask of each row without padding, [length, 2].
        sender: Triton's response sender.
        timeout_us: The request's timeout; 0 for none.
        level: Its place in the order of requests; lower levels are served first.
    """

    def __init__(self, rows, sender, timeout_us, level):
        self.level = level
        self.waiting = sorted(((row, self, index) for index, row in enumerate(rows)), key=length_of, reverse=True)
        self.tokens = sum(map(len, rows))  # of the rows that wait
        self.logits = np.empty((len(rows), 1), np.float32)
        self.missing = len(rows)
        self.answered = False
        self._sender = sender
        self._deadline = time.monotonic() + (timeout_us / 1e6 or math.inf)
        self._start_by = math.inf

    def put(self, index, logit):
        """Take the logit of one row; the last logit answers the request."""
        self.logits[index] = logit
        self.missing -= 1
        if not self.missing:
            self._answer(pb_utils.InferenceResponse([pb_utils.Tensor("logits", self.logits)]))

    def start_within(self, seconds):
        """Give a request that waits to be started no more than `seconds`; one that has started keeps its deadline."""
        self._start_by = time.monotonic() + seconds

    def drop_if_late(self, now):
        """Answer with an error if the request's time is over; whether it is answered, by this or before."""
        untouched = len(self.waiting) == len(self.logits)
        if now > self._deadline or (untouched and now > self._start_by):
            # Triton's own words for a request that expires in the queue: clients recognise them.
            self.fail("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)
        return self.answered

    def drop_if_cancelled(self):
        """Answer with an error if the caller has cancelled."""
        if not self.answered and self._sender.is_cancelled():
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

    Waiting is counted in seconds: tokens divided by the speed of the latest micro-batches. A count of requests would
    mean a second or a minute, with the model, the processor and the texts.

    Args:
        micro_batch_tokens: Tokens of a micro-batch at most, padding included; one row may have more.
        max_length: Longest row.
        max_wait_s: Seconds of work before a request at most, besides the largest request; beyond, it is refused.
        queue_timeout_s: Seconds until a request must have started, or it is refused after all.
    """

    def __init__(self, micro_batch_tokens, max_length, max_wait_s, queue_timeout_s):
        self._micro_batch_tokens = micro_batch_tokens
        self._max_length = max_length
        self._max_wait_s = max_wait_s
        self._queue_timeout_s = queue_timeout_s
        self._requests = []  # in the order of service: by level, then by arrival
        self._tokens = self._seconds = 0.0  # of the latest micro-batches
        self._closed = False
        self._changed = threading.Condition()

    def add(self, request):
        """Take a request's rows, or refuse it. Returns at once.

        A request may wait `max_wait_s` besides the largest request, its own or one before it: two callers with large
        requests take turns, and a small request waits for a large one.

        Returns:
            Seconds of work before the request if it is refused, else None.
        """
        with self._changed:
            self._drop_late()  # what nobody waits for keeps nobody waiting
            before = [other for other in self._requests if other.level <= request.level]
            before_s = self._seconds_of(before)
            room_s = self._max_wait_s + max(self._seconds_of([other]) for other in (*before, request))
            if before_s > room_s * (BEGUN_ROOM if request.level % 2 else 1):
                return before_s
            request.start_within(self._queue_timeout_s)
            self._requests.append(request)
            self._requests.sort(key=lambda other: other.level)  # stable
            self._changed.notify_all()
            return None

    def take(self):
        """Wait for the next micro-batch: a list of (row, request, index), empty when the pool is closed and empty.

        The longest row of the first request leads, so no row waits for ever. Rows of the requests behind it that are
        next to it in length join it, as many as keep the cost of these requests lowest.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._requests or self._closed)
                if not self._requests:
                    return []
                self._drop_late()
                if self._requests:
                    return self._cut()

    def ran(self, tokens, seconds):
        """Record the speed of a micro-batch."""
        with self._changed:
            self._tokens = DECAY * self._tokens + tokens
            self._seconds = DECAY * self._seconds + seconds

    @property
    def waiting_s(self):
        """Seconds of work that wait."""
        with self._changed:
            return self._seconds_of(self._requests)

    def close(self):
        """Let `take` return an empty list once all rows are taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _drop_late(self):
        now = time.monotonic()
        self._requests = [request for request in self._requests if not request.drop_if_late(now)]

    def _seconds_of(self, requests):
        tokens = sum(request.tokens for request in requests)
        return tokens * self._seconds / self._tokens if self._tokens else 0.0

    def _combined(self):
        """The first requests, whose rows may run together."""
        tokens = 0
        for request in self._requests:
            yield request
            tokens += request.tokens
            if tokens >= COMBINED * self._micro_batch_tokens:
                return

    def _cut(self):
        longest = length_of(self._requests[0].waiting[0])
        fitting = [item for request in self._combined() for item in request.waiting if length_of(item) <= longest]
        fitting.sort(key=length_of, reverse=True)
        lengths = [padded_length(length_of(item), self._max_length) for item in fitting]
        (_, end), *_ = cut_by_cost(lengths, self._micro_batch_tokens)
        taken = fitting[:end]
        keys = {(id(request), index) for _, request, index in taken}
        for request in {id(request): request for _, request, _ in taken}.values():
            request.waiting = [item for item in request.waiting if (id(request), item[2]) not in keys]
            request.tokens = sum(map(length_of, request.waiting))
        self._requests = [request for request in self._requests if request.waiting]
        return taken


def length_of(item):
    """Tokens of a (row, request, index)."""
    return len(item[0])


def send(sender, response):
    """Send the one response of a request."""
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def failure(message, code):
    """An error response to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
