"""Tokenizer of late interaction: (query, document) pairs of text -> token ids of both apart, and each token's role.

Stands alone on purpose: in NVIDIA's container only `numpy` and `tokenizers` are there beside it.

A row is the checkpoint's tokens before the text, the text, cut from its right end, and the tokens after it; a query may
be filled up to a fixed length with [MASK], as in ColBERT. Query and document never share a row, and a document's limit
does not depend on its query, so that a document has the same ids, and the same vectors, whatever was asked.

`manifest.json` beside this file says how (`settings`), `tokenizer.json` is the checkpoint's.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

# What a token does: it is attended to by the others, its vector counts in the score, or both. 0 is padding.
ATTENDED, SCORED = 1, 2

# A text is encoded from its head as long as that yields enough tokens: what lies beyond can't survive the cut.
HEAD_CHARS_PER_TOKEN = 16
# Cutting text in the middle can change the last few tokens before the cut; these are never used.
HEAD_MARGIN_TOKENS = 64


class BadRequestError(ValueError):
    """The request itself is wrong: it gets INVALID_ARGUMENT with this message, its neighbours get their answers."""


class Side:
    """How a query, or a document, becomes a row of token ids."""

    def __init__(self, settings, unscored_ids):
        self.prefix = settings["prefix"]
        self.before, self.after = settings["before"], settings["after"]
        self.max_length = settings["max_length"]
        self.fill_id = settings["fill_id"]
        self.special_role = ATTENDED | SCORED if settings["special_scored"] else ATTENDED
        self.unscored_ids = np.array(unscored_ids, np.int32)
        self.num_special = len(self.before) + len(self.after)

    def row(self, ids, max_length):
        """Ids, roles and whether text was cut; `ids` are those of the text."""
        kept = ids[: max_length - self.num_special]
        row = np.array(self.before + kept + self.after, np.int32)
        roles = np.full(len(row), ATTENDED | SCORED, np.uint8)
        roles[: len(self.before)] = self.special_role
        roles[len(row) - len(self.after) :] = self.special_role
        roles[np.isin(row, self.unscored_ids)] = ATTENDED
        if self.fill_id is not None:
            missing = max_length - len(row)
            row = np.pad(row, (0, missing), constant_values=self.fill_id)
            roles = np.pad(roles, (0, missing), constant_values=SCORED)
        return row, roles, len(kept) < len(ids)


class PairRequest:
    """One request: its texts, its limits, and where its queries stand in the shared list of distinct ones."""

    def __init__(self, request, limits):
        self.query_cells = text_cells(request, "query")
        document_cells = text_cells(request, "document")
        parameters = json.loads(request.parameters() or "{}")
        self.max_length = limits.of_document(parameters)
        self.query_max_length = limits.of_query(parameters)
        self.documents = [decode(cell, "document", row) for row, cell in enumerate(document_cells)]
        first_rows = {cell: self.query_cells.index(cell) for cell in dict.fromkeys(self.query_cells)}
        self.queries = {cell: decode(cell, "query", row) for cell, row in first_rows.items()}


class Limits:
    """Token limits: the checkpoint's, the default, and what a request may ask for."""

    def __init__(self, query, document, default_max_length):
        self.query, self.document = query, document
        self.default_max_length = min(default_max_length, document.max_length)

    def of_document(self, parameters):
        """`max_length` of a request: tokens of a document, its special tokens included."""
        asked = whole_number(parameters, "max_length", self.default_max_length)
        low, high = self.document.num_special + 1, self.document.max_length
        if not low <= asked <= high:
            raise BadRequestError(
                f"max_length must be {low} to {high} tokens of a document for this checkpoint, got {asked}"
            )
        return asked

    def of_query(self, parameters):
        """`query_max_length` of a request; a query that is filled up has the checkpoint's length and no other."""
        low, high = self.query.num_special + 1, self.query.max_length
        asked = whole_number(parameters, "query_max_length", high)
        if self.query.fill_id is not None and asked != high:
            raise BadRequestError(f"query_max_length is {high} in this checkpoint and can't be changed, got {asked}")
        if not low <= asked <= high:
            raise BadRequestError(f"query_max_length must be {low} to {high} tokens for this checkpoint, got {asked}")
        return asked


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the tokenizer, and encode once so that READY means warm."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        facts = read_manifest(folder)
        settings = facts["settings"]
        self.query = Side(settings["query"], [])
        self.document = Side(settings["document"], settings["unscored_ids"])
        default = int(config["parameters"]["default_max_length"]["string_value"])
        self.limits = Limits(self.query, self.document, default)
        self.pad_id = settings["pad_id"]
        facts |= {"max_length": self.document.max_length, "default_max_length": self.limits.default_max_length}
        self.info = json.dumps(facts, ensure_ascii=False).encode()
        # Before the first call: the Rust threads of every instance share the cores, and are made on first use.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.encode([("warm-up", 8), ("two texts start the threads", 8)])

    def execute(self, requests):
        """Answer each request on its own; what they have in common is encoded in one batch."""
        responses = [None] * len(requests)
        good = []
        for place, request in enumerate(requests):
            try:
                good.append((place, request, PairRequest(request, self.limits)))
            except BadRequestError as error:
                responses[place] = refusal(str(error))
        answers = self.tokenize([pairs for _, _, pairs in good])
        for (place, request, _), (queries, documents) in zip(good, answers, strict=True):
            responses[place] = self.response(request, queries, documents)
        return responses

    def tokenize(self, batch):
        """Yield, for each request of `batch`, its rows of queries and of documents, as `Side.row` gives them."""
        query, document = self.query, self.document
        queries = {cell: query.prefix + text for pairs in batch for cell, text in pairs.queries.items()}
        texts = [(document.prefix + text, pairs.max_length) for pairs in batch for text in pairs.documents]
        encoded = iter(self.encode([(text, query.max_length) for text in queries.values()] + texts))
        query_ids = {cell: next(encoded) for cell in queries}
        for pairs in batch:
            rows = {cell: query.row(query_ids[cell], pairs.query_max_length) for cell in pairs.queries}
            documents = [document.row(next(encoded), pairs.max_length) for _ in pairs.documents]
            yield [rows[cell] for cell in pairs.query_cells], documents

    def encode(self, wanted):
        """Token ids of each (text, needed): all of them, or `needed` and a few more where that is less work."""
        heads = [head(text, needed) for text, needed in wanted]
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(heads, add_special_tokens=False)]
        for row, ((text, needed), start) in enumerate(zip(wanted, heads, strict=True)):
            if len(start) == len(text):
                continue
            if len(ids[row]) >= needed + HEAD_MARGIN_TOKENS:
                del ids[row][needed + HEAD_MARGIN_TOKENS // 2 :]
            else:  # few tokens in much text (blanks, unknown characters): the head was not enough
                ids[row] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def response(self, request, queries, documents):
        """The tensors of one request; rows padded on the right to the longest."""
        num_tokens = [len(query[0]) + len(document[0]) for query, document in zip(queries, documents, strict=True)]
        cut = [query[2] or document[2] for query, document in zip(queries, documents, strict=True)]
        tensors = {
            "query_ids": padded([ids for ids, _, _ in queries], self.pad_id),
            "query_roles": padded([roles for _, roles, _ in queries], 0),
            "document_ids": padded([ids for ids, _, _ in documents], self.pad_id),
            "document_roles": padded([roles for _, roles, _ in documents], 0),
            "expires_at_us": np.full((len(queries), 1), expiry_us(request), np.int64),
            "num_tokens": np.array(num_tokens, np.int32)[:, None],
            "truncated": np.array(cut, bool)[:, None],
        }
        asked = set(request.requested_output_names())
        if "model_info" in asked:
            tensors["model_info"] = np.full((len(queries), 1), self.info, object)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, tensor) for name, tensor in tensors.items() if name in asked]
        )


def read_manifest(folder):
    """What the builder has written beside this file."""
    path = folder / "manifest.json"
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
    return json.loads(path.read_text(encoding="utf-8"))


def padded(rows, fill):
    """Rows of different lengths as one array [num_pairs, length]."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    array = np.full((len(rows), int(lengths.max())), fill, rows[0].dtype)
    array[np.arange(array.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return array


def head(text, needed):
    """The start of `text` that should yield `needed` tokens and some more, cut at a blank if one is near."""
    end = HEAD_CHARS_PER_TOKEN * (needed + HEAD_MARGIN_TOKENS)
    if len(text) <= end:
        return text
    blank = text.rfind(" ", end - end // 8, end)
    return text[: end if blank < 0 else blank]


def text_cells(request, name):
    """The cells of a STRING tensor [num_pairs, 1] as bytes; Triton has checked the shape and that the rows match."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0].tolist()


def decode(cell, name, row):
    """UTF-8 text of a cell."""
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{name}[{row}] is not valid UTF-8: {error.reason} at byte {error.start}") from None


def whole_number(parameters, name, default):
    """A request parameter that must be a whole number."""
    value = parameters.get(name, default)
    if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
        raise BadRequestError(f"{name} must be a whole number of tokens, got {value!r}")
    return value


def expiry_us(request):
    """When nobody waits for the answer any more, by the clock that all processes of a machine share; 0 = never."""
    timeout_us = request.timeout()
    return time.monotonic_ns() // 1000 + timeout_us if timeout_us else 0


def refusal(message):
    """An INVALID_ARGUMENT answer; it passes through the ensemble unchanged."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
