"""Requests of (query, document) text pairs: what the models `tokenizer` and `late_scorer` share.

The one source file is model_repository/tokenizer/1/text_pairs.py. `triton-rerank-build export` copies it beside the
model.py of `late_scorer`: Triton's Python stub adds the folder of a model.py to sys.path. NVIDIA's container has no
package of this project, so this file imports only `numpy`, `tokenizers` and Triton's own module.
"""

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

# A document is encoded from its head as long as that yields enough tokens: truncation drops the rest.
HEAD_CHARS_PER_TOKEN = 16
# Cutting text in the middle can change the last few tokens before the cut; these are never used.
HEAD_MARGIN_TOKENS = 64
# Where the head yields too few tokens, this many characters per token are encoded; the rest is cut. Four callers that
# sent 60 MB of blanks once kept the tokenizer busy for 20 s.
MAX_CHARS_PER_TOKEN = 256
# A run of one character is shortened to this length where the tokenizer gives longer runs the same ids: blanks, control
# characters, unknown characters. Such runs don't count as encoded, and this many characters per token are looked at.
RUN_CHARS = 256
# Each character costs some encoding: those with the longest runs of a text are examined, and the results kept.
MAX_RUN_CHARACTERS = 16
MAX_KNOWN_CHARACTERS = 1000
MAX_READ_CHARS_PER_TOKEN = 4096
# Between so many characters the encoder looks whether anyone still waits for the rest.
PART_CHARS = 1 << 20
# Longer timeouts count as none: about 285 years.
LONGEST_TIMEOUT_US = 2**53
# Triton's own words for a request that expires in the queue: clients recognise them.
EXPIRED = "Request timeout expired"

# Text that is encoded with a query or document: none.
NO_ENDS = {"prefix": "", "suffix": ""}


class BadRequestError(ValueError):
    """The request is invalid: it gets INVALID_ARGUMENT and this message; the others of its batch get their answers."""


class PairRequest:
    """The texts and token limits of one request.

    Args:
        request: Triton's request.
        limits: Its `of_request` turns request parameters into `max_length` and `query_max_length`.

    Raises:
        BadRequestError: A parameter is out of range, or a text is not UTF-8.
    """

    def __init__(self, request, limits):
        self.requested = set(request.requested_output_names())
        self.expires_at_us = expiry_us(request)
        self.query_cells = text_cells(request, "query")
        self.document_cells = text_cells(request, "document")
        if len(self.query_cells) != len(self.document_cells):
            raise BadRequestError(f"got {len(self.query_cells)} queries and {len(self.document_cells)} documents")
        self.parameters = json.loads(request.parameters() or "{}")
        self.max_length, self.query_max_length = limits.of_request(self.parameters)
        self.documents = [decode(cell, "document", row) for row, cell in enumerate(self.document_cells)]
        first_rows = {cell: self.query_cells.index(cell) for cell in dict.fromkeys(self.query_cells)}
        # Distinct queries: most requests repeat one query for every document.
        self.queries = {cell: decode(cell, "query", row) for cell, row in first_rows.items()}

    @property
    def expired(self):
        """Whether its timeout is over. Triton never marks a step of an ensemble as cancelled."""
        return 0 < self.expires_at_us < time.monotonic_ns() // 1000

    def response(self, tensors, model_info):
        """The response with those of `tensors` that the request asks for, and `model_info` if it asks for that.

        An error if the request has expired: its texts may not have been encoded.
        """
        if self.expired:
            return failure(EXPIRED, pb_utils.TritonError.UNAVAILABLE)
        if "model_info" in self.requested:
            tensors["model_info"] = np.full((len(self.documents), 1), model_info, object)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, tensor) for name, tensor in tensors.items() if name in self.requested]
        )


class TextEncoder:
    """Turns text into token ids without special tokens, in batches that use every core.

    Args:
        tokenizer: A `tokenizers.Tokenizer`. It loses its truncation and padding.
    """

    def __init__(self, tokenizer):
        # Set before the first batch, which starts the Rust threads that encode a batch on every core.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._collapsible = {}
        # READY means warm: two texts are a batch.
        self.encode([("warm-up", 8), ("two texts start the threads", 8)])

    def encode(self, texts):
        """Encode each (text, needed).

        Returns:
            For each text a pair: its token ids, all of them or at least `needed` where that is less work; and whether
            encoding stopped before the end of the text without `needed` tokens.
        """
        heads = [head(text, needed) for text, needed in texts]
        ids = self._ids(heads)
        cut = [False] * len(texts)
        sparse = []  # few tokens in much text (blanks, unknown characters): the head was not enough
        for row, ((text, needed), start) in enumerate(zip(texts, heads, strict=True)):
            if len(start) == len(text):
                continue
            if len(ids[row]) >= needed + HEAD_MARGIN_TOKENS:
                del ids[row][needed + HEAD_MARGIN_TOKENS // 2 :]
            else:
                sparse.append(row)
        if sparse:
            bounded = [self._bounded(*texts[row]) for row in sparse]
            for row, found, (_, stopped) in zip(sparse, self._ids([text for text, _ in bounded]), bounded, strict=True):
                ids[row], cut[row] = found, stopped
        return list(zip(ids, cut, strict=True))

    def _ids(self, texts):
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _bounded(self, text, needed):
        """What is encoded of a long text that has few tokens, and whether that ends before the text does."""
        tokens = needed + HEAD_MARGIN_TOKENS
        read = text[: MAX_READ_CHARS_PER_TOKEN * tokens]
        read_all = len(read) == len(text)
        shortened = "".join(self._without_long_runs(read))
        kept = shortened[: MAX_CHARS_PER_TOKEN * tokens]
        return kept, not read_all or len(kept) < len(shortened)

    def _without_long_runs(self, text):
        """Yield the parts of `text` that remain when long runs of one character are shortened."""
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        starts = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])
        lengths = np.diff(starts, append=len(codes))
        long = lengths > RUN_CHARS
        starts, lengths = starts[long], lengths[long]
        characters, kinds = np.unique(codes[starts], return_inverse=True)
        largest = characters[np.argsort(-np.bincount(kinds, lengths))[:MAX_RUN_CHARACTERS]]
        collapsing = {chr(character) for character in largest.tolist() if self._collapses(chr(character))}
        end = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            if text[start] in collapsing:
                yield text[end : start + RUN_CHARS]
                end = start + length
        yield text[end:]

    def _collapses(self, character):
        """Whether long runs of `character` have the same ids, whatever their length."""
        if (known := self._collapsible.get(character)) is not None:
            return known
        if len(self._collapsible) >= MAX_KNOWN_CHARACTERS:
            self._collapsible.clear()
        around = [(before, after) for before in ("", "a", "a ") for after in ("", "b", " b")]
        short, long = (
            self._ids([before + character * length + after for before, after in around])
            for length in (RUN_CHARS, 2 * RUN_CHARS + 1)
        )
        self._collapsible[character] = short == long
        return short == long

    def encode_requests(self, batch, query_needed, query_ends=NO_ENDS, document_ends=NO_ENDS):
        """Encode the distinct queries and the documents of all requests, in one batch unless they are long.

        Texts of requests that expire meanwhile are not encoded.

        Args:
            batch: `PairRequest`s.
            query_needed: Number of token ids that a query needs at most.
            query_ends: `prefix` before every query, `suffix` after it.
            document_ends: The same of every document.

        Yields:
            For each request what `encode` returns for the batch's queries, by cell, and a list of it for its documents.
        """
        owners = {}
        for pairs in batch:
            for cell in pairs.queries:
                owners.setdefault(cell, []).append(pairs)
        before, after = query_ends["prefix"], query_ends["suffix"]
        queries = [(before + those[0].queries[cell] + after, query_needed, those) for cell, those in owners.items()]
        before, after = document_ends["prefix"], document_ends["suffix"]
        documents = [(before + text + after, pairs.max_length, [pairs]) for pairs in batch for text in pairs.documents]
        encoded = self.encode_awaited(queries + documents)
        query_ids = {cell: next(encoded) for cell in owners}
        for pairs in batch:
            yield query_ids, [next(encoded) for _ in pairs.documents]

    def encode_awaited(self, texts):
        """Yield what `encode` returns for each (text, needed, requests); no ids if all of its requests have expired."""
        start, size = 0, 0
        for end, (text, _, _) in enumerate(texts, start=1):
            size += len(text)
            if size < PART_CHARS and end < len(texts):
                continue
            awaited = [not all(pairs.expired for pairs in requests) for _, _, requests in texts[start:end]]
            part = [text[:2] for text, wanted in zip(texts[start:end], awaited, strict=True) if wanted]
            encoded = iter(self.encode(part) if part else ())
            yield from (next(encoded) if wanted else ([], True) for wanted in awaited)
            start, size = end, 0


def read_requests(requests, limits):
    """Read requests, and refuse the invalid ones.

    Returns:
        A list with the error response of each invalid request and None for each valid one, and the valid ones as
        (index in that list, PairRequest).
    """
    responses, valid = [None] * len(requests), []
    for index, request in enumerate(requests):
        try:
            valid.append((index, PairRequest(request, limits)))
        except BadRequestError as error:
            # An ensemble passes this error on to the client unchanged.
            responses[index] = invalid(str(error))
        except Exception as error:  # noqa: BLE001 - shapes beyond 2^31 raise many types; the other requests go on
            responses[index] = invalid(f"the request can't be read: {error!r}")
    return responses, valid


def invalid(message):
    """The error response to an invalid request."""
    return failure(message, pb_utils.TritonError.INVALID_ARG)


def failure(message, code):
    """An error response to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def expiry_us(request):
    """When the request's timeout ends, by the monotonic clock that all processes of a machine share; 0 = never.

    Triton tells the caller's whole timeout, not when the request came, so time spent in the queue does not count. It
    reads a timeout of -1 as 2^64 - 1: with the time of the clock that is more than INT64 holds.
    """
    timeout_us = request.timeout()
    return time.monotonic_ns() // 1000 + timeout_us if 0 < timeout_us < LONGEST_TIMEOUT_US else 0


def whole_number(parameters, name, default):
    """The request parameter `name`, which must be an integer; `default` if the request does not have it."""
    value = parameters.get(name, default)
    if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadRequestError(f"{name} must be a whole number of tokens, got {value!r}")
    return value


def text_cells(request, name):
    """The cells of a STRING tensor [num_pairs, 1] as bytes. Triton counts rows in 32 bits, so 2^40 of them pass it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if tensor.ndim != 2 or tensor.shape[1] != 1 or not len(tensor):
        raise BadRequestError(f"{name} must have shape [num_pairs, 1], got {list(tensor.shape)}")
    return tensor[:, 0].tolist()


def decode(cell, name, row):
    """The UTF-8 text of a cell."""
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{name}[{row}] is not valid UTF-8: {error.reason} at byte {error.start}") from None


def head(text, needed):
    """The start of `text` that should yield `needed` tokens and a margin, cut at a blank if one is near."""
    end = HEAD_CHARS_PER_TOKEN * (needed + HEAD_MARGIN_TOKENS)
    if len(text) <= end:
        return text
    blank = text.rfind(" ", end - end // 8, end)
    return text[: end if blank < 0 else blank]
