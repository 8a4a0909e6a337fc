"""Requests of (query, document) text pairs: what the models `tokenizer` and `late_tokenizer` share.

The one source file is model_repository/tokenizer/1/text_pairs.py. `triton-rerank-build export` copies it beside the
model.py of `late_tokenizer`: Triton's Python stub adds the folder of a model.py to sys.path. NVIDIA's container has no
package of this project, so this file imports only `numpy`, `tokenizers` and Triton's own module.
"""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils

# A document is encoded from its head as long as that yields enough tokens: truncation drops the rest.
HEAD_CHARS_PER_TOKEN = 16
# Cutting text in the middle can change the last few tokens before the cut; these are never used.
HEAD_MARGIN_TOKENS = 64


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
        self.request = request
        self.query_cells = text_cells(request, "query")
        document_cells = text_cells(request, "document")
        self.max_length, self.query_max_length = limits.of_request(json.loads(request.parameters() or "{}"))
        self.documents = [decode(cell, "document", row) for row, cell in enumerate(document_cells)]
        first_rows = {cell: self.query_cells.index(cell) for cell in dict.fromkeys(self.query_cells)}
        # Distinct queries: most requests repeat one query for every document.
        self.queries = {cell: decode(cell, "query", row) for cell, row in first_rows.items()}

    def response(self, tensors, model_info):
        """The response with those of `tensors` that the request asks for, and `model_info` if it asks for that."""
        requested = set(self.request.requested_output_names())
        if "model_info" in requested:
            tensors["model_info"] = np.full((len(self.documents), 1), model_info, object)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, tensor) for name, tensor in tensors.items() if name in requested]
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
        # READY means warm: two texts are a batch.
        self.encode([("warm-up", 8), ("two texts start the threads", 8)])

    def encode(self, texts):
        """Token ids of each (text, needed): all of them, or at least `needed` where that is less work."""
        heads = [head(text, needed) for text, needed in texts]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(heads, add_special_tokens=False)]
        for row, ((text, needed), start) in enumerate(zip(texts, heads, strict=True)):
            if len(start) == len(text):
                continue
            if len(ids[row]) >= needed + HEAD_MARGIN_TOKENS:
                del ids[row][needed + HEAD_MARGIN_TOKENS // 2 :]
            else:  # few tokens in much text (blanks, unknown characters): the head was not enough
                ids[row] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def encode_requests(self, batch, query_needed, *, query_prefix="", document_prefix=""):
        """Encode the distinct queries and the documents of all requests in one batch.

        Args:
            batch: `PairRequest`s.
            query_needed: Number of token ids that a query needs at most.
            query_prefix: Text before every query.
            document_prefix: Text before every document.

        Yields:
            For each request the token ids of the batch's queries, by cell, and a list of those of its documents.
        """
        queries = {cell: query_prefix + text for pairs in batch for cell, text in pairs.queries.items()}
        documents = [(document_prefix + text, pairs.max_length) for pairs in batch for text in pairs.documents]
        encoded = iter(self.encode([(text, query_needed) for text in queries.values()] + documents))
        query_ids = {cell: next(encoded) for cell in queries}
        for pairs in batch:
            yield query_ids, [next(encoded) for _ in pairs.documents]


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
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            responses[index] = pb_utils.InferenceResponse(error=failure)
    return responses, valid


def whole_number(parameters, name, default):
    """The request parameter `name`, which must be an integer; `default` if the request does not have it."""
    value = parameters.get(name, default)
    if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadRequestError(f"{name} must be a whole number of tokens, got {value!r}")
    return value


def text_cells(request, name):
    """The cells of a STRING tensor [num_pairs, 1] as bytes; Triton has checked its shape and number of rows."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0].tolist()


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
