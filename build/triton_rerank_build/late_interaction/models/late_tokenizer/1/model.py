"""Tokenizer of late interaction: (query, document) pairs of text -> token ids of both, separately, with token roles.

Runs inside Triton's Python stub, with text_pairs.py beside it (`export` copies it there from the model `tokenizer`);
both need only `numpy` and `tokenizers`.

A row is the checkpoint's tokens before the text, the text, cut from its right end, and the tokens after it; a query may
be filled up to a fixed length with [MASK], as in ColBERT. Query and document never share a row, and a document's limit
does not depend on its query, so a document has the same ids, and the same vectors, for every query.

`settings` in `manifest.json` beside this file holds these rules; `tokenizer.json` is the checkpoint's.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from text_pairs import BadRequestError, TextEncoder, read_requests, whole_number
from tokenizers import Tokenizer

# The role of a token: other tokens attend to it, its vector counts in the score, or both. 0 is padding.
ATTENDED, SCORED = 1, 2


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

    def row(self, text, max_length):
        """Token ids, their roles, and whether text was cut; `text` is what `TextEncoder` makes of it."""
        ids, cut = text
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
        return row, roles, cut or len(kept) < len(ids)


class Limits:
    """Token limits: the checkpoint's, the default, and those that a request asks for."""

    def __init__(self, query, document, default_max_length):
        self.query, self.document = query, document
        self.default_max_length = min(default_max_length, document.max_length)

    def of_request(self, parameters):
        """`max_length` and `query_max_length` of a request with these parameters."""
        return self.of_document(parameters), self.of_query(parameters)

    def of_document(self, parameters):
        """`max_length`: tokens of a document, its special tokens included."""
        asked = whole_number(parameters, "max_length", self.default_max_length)
        low, high = self.document.num_special + 1, self.document.max_length
        if not low <= asked <= high:
            raise BadRequestError(
                f"max_length must be {low} to {high} tokens of a document for this checkpoint, got {asked}"
            )
        return asked

    def of_query(self, parameters):
        """`query_max_length`: where queries are filled up, the checkpoint's length is the only one. 0 is that, too."""
        low, high = self.query.num_special + 1, self.query.max_length
        asked = whole_number(parameters, "query_max_length", high) or high
        if self.query.fill_id is not None and asked != high:
            raise BadRequestError(f"query_max_length is {high} in this checkpoint and can't be changed, got {asked}")
        if not low <= asked <= high:
            raise BadRequestError(f"query_max_length must be {low} to {high} tokens for this checkpoint, got {asked}")
        return asked


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the tokenizer and the rules of the checkpoint."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        facts = read_manifest(folder / "manifest.json")
        settings = facts["settings"]
        self.query = Side(settings["query"], [])
        self.document = Side(settings["document"], settings["unscored_ids"])
        default = int(config["parameters"]["default_max_length"]["string_value"])
        self.limits = Limits(self.query, self.document, default)
        self.pad_id = settings["pad_id"]
        facts |= {"max_length": self.document.max_length, "default_max_length": self.limits.default_max_length}
        self.info = json.dumps(facts, ensure_ascii=False).encode()
        self.encoder = TextEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def execute(self, requests):
        """Respond to each request separately; the texts of all of them are encoded in one batch."""
        responses, valid = read_requests(requests, self.limits)
        tokenized = self.tokenize([pairs for _, pairs in valid])
        for (index, pairs), (queries, documents) in zip(valid, tokenized, strict=True):
            responses[index] = pairs.response(self.tensors(pairs, queries, documents), self.info)
        return responses

    def tokenize(self, batch):
        """Yield, for each request of `batch`, its rows of queries and of documents, as `Side.row` returns them."""
        query, document = self.query, self.document
        encoded = self.encoder.encode_requests(
            batch, query.max_length, query_prefix=query.prefix, document_prefix=document.prefix
        )
        for pairs, (query_ids, document_ids) in zip(batch, encoded, strict=True):
            rows = {cell: query.row(query_ids[cell], pairs.query_max_length) for cell in pairs.queries}
            documents = [document.row(ids, pairs.max_length) for ids in document_ids]
            yield [rows[cell] for cell in pairs.query_cells], documents

    def tensors(self, pairs, queries, documents):
        """The output tensors of one request; rows are padded on the right to the longest."""
        num_tokens = [len(query[0]) + len(document[0]) for query, document in zip(queries, documents, strict=True)]
        truncated = [query[2] or document[2] for query, document in zip(queries, documents, strict=True)]
        return {
            "query_ids": padded([ids for ids, _, _ in queries], self.pad_id),
            "query_roles": padded([roles for _, roles, _ in queries], 0),
            "document_ids": padded([ids for ids, _, _ in documents], self.pad_id),
            "document_roles": padded([roles for _, roles, _ in documents], 0),
            "expires_at_us": np.full((len(queries), 1), pairs.expires_at_us, np.int64),
            "num_tokens": np.array(num_tokens, np.int32)[:, None],
            "truncated": np.array(truncated, bool)[:, None],
        }


def read_manifest(path):
    """The builder's manifest, or an error that names the command that writes it."""
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
    return json.loads(path.read_text(encoding="utf-8"))


def padded(rows, fill):
    """Rows of different lengths as one array [num_pairs, length]."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    array = np.full((len(rows), int(lengths.max())), fill, rows[0].dtype)
    array[np.arange(array.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return array
