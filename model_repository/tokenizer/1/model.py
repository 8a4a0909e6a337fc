"""Tokenizer of the reranker: (query, document) pairs of text -> padded token ids.

Runs inside Triton's Python stub, with text_pairs.py and text_layout.py beside it; needs only `numpy` and `tokenizers`.

The rule is that of the bge-reranker authors (FlagEmbedding, FlagReranker): query and document are encoded
separately, without special tokens; the query is cut to `query_max_length` (by default 3/4 of `max_length`); then only
the document is cut, from its right end, to the room that is left. With `query_max_length` 0 the rule is that of
sentence-transformers: of query and document the longer loses tokens first (`longest_first` in transformers).

Where the texts stand in a row, and what is between them, is `layout` of manifest.json (text_layout.py).
`tokenizer.json` carries two more facts of the checkpoint, in the fields that its format has for them:
truncation.max_length (the limit of a pair) and padding.pad_id.
"""

import json
from array import array
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from text_layout import TextLayout
from text_pairs import BadRequestError, TextEncoder, read_requests, whole_number
from tokenizers import Tokenizer

# Of two texts beyond max_length the longer keeps one token more if the room is odd; they are compared up to this many
# times max_length.
COMPARED = 16


class Limits:
    """Token limits: the checkpoint's, the default, and those that a request asks for."""

    def __init__(self, layout, max_length, parameters):
        self.layout, self.max_length = layout, max_length
        self.default_max_length = min(int(parameters["default_max_length"]), self.max_length)
        steps = sorted(int(bucket) for bucket in parameters["buckets"].split())
        self.buckets = [bucket for bucket in steps if bucket < self.max_length] + [self.max_length]

    def of_request(self, parameters):
        """`max_length` and `query_max_length` of a request with these parameters."""
        num_special = self.layout.num_special(self.layout.start(parameters))
        max_length = self.of_pair(parameters, num_special)
        return max_length, self.of_query(parameters, max_length, num_special)

    def of_pair(self, parameters, num_special):
        """`max_length`: with room for a query token and a document token."""
        asked = whole_number(parameters, "max_length", self.default_max_length)
        low = num_special + self.layout.least_query + self.layout.least_document
        if not low <= asked <= self.max_length:
            raise BadRequestError(
                f"max_length must be {low} to {self.max_length} tokens for this checkpoint, got {asked}"
            )
        return asked

    def of_query(self, parameters, max_length, num_special):
        """`query_max_length`: by default 3/4 of max_length, as in FlagReranker; 0 for no limit of its own."""
        low, high = self.layout.least_query, max_length - num_special - self.layout.least_document
        asked = whole_number(parameters, "query_max_length", None)
        if asked is None:
            return min(max_length * 3 // 4, high)
        if asked and not low <= asked <= high:
            raise BadRequestError(
                f"query_max_length must be {low} to {high} tokens (max_length {max_length} less {num_special} special "
                f"tokens and one of the document), or 0 to cut the longer of query and document; got {asked}"
            )
        return asked

    def bucket(self, length):
        """The smallest bucket that holds `length` tokens."""
        return next(bucket for bucket in self.buckets if bucket >= length)


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the tokenizer."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        manifest = read_manifest(folder / "manifest.json")
        max_length, self.pad_id = tokenizer.truncation["max_length"], tokenizer.padding["pad_id"]
        self.encoder = TextEncoder(tokenizer)
        self.layout = TextLayout(tokenizer, manifest.get("layout"), token_types=manifest.get("token_types", False))
        self.limits = Limits(self.layout, max_length, parameters)
        self.info = model_info(manifest, self.limits)

    def execute(self, requests):
        """Respond to each request separately; the texts of all of them are encoded in one batch."""
        responses, valid = read_requests(requests, self.limits)
        tokenized = self.tokenize([pairs for _, pairs in valid])
        for (index, pairs), tokens in zip(valid, tokenized, strict=True):
            responses[index] = pairs.response(self.tensors(*tokens), self.info)
        return responses

    def tokenize(self, batch):
        """Yield, for each request of `batch`, the token ids of its pairs and whether text was cut from them.

        The ids of all rows, one row after another, in one array, which costs less than a list for each row; for
        each pair its number of tokens, of query tokens, and the flag.
        """
        layout, (query_end, document_end) = self.layout, (self.layout.query_end, self.layout.document_end)
        encoded = self.encoder.encode_requests(batch, self.limits.max_length, layout.query, layout.document)
        for pairs, (query_ids, document_ids) in zip(batch, encoded, strict=True):
            ids, ends, query_lengths, truncated = array("i"), [0], [], []
            start = layout.start(pairs.parameters)
            pair_room = pairs.max_length - layout.num_special(start)
            for row, (cell, (document, unread)) in enumerate(zip(pairs.query_cells, document_ids, strict=True)):
                query, query_cut = query_ids[cell]
                limit = pairs.query_max_length or longest_first(*self.lengths(pairs, row, query, document), pair_room)
                if query_cut := query_cut or len(query) > limit:
                    query = ended(query, limit, query_end)
                room = pair_room - len(query)
                document_cut = unread or len(document) > room
                ids.fromlist(start + query + layout.between)
                ids.fromlist(ended(document, room, document_end) if document_cut else document)
                ids.fromlist(layout.after)
                ends.append(len(ids))
                query_lengths.append(len(query))
                truncated.append(document_cut or query_cut)
            yield ids, np.diff(np.array(ends, np.int32)), query_lengths, truncated

    def lengths(self, pairs, row, query, document):
        """Tokens of a pair's query and document, as far as `longest_first` needs them."""
        if min(len(query), len(document)) > pairs.max_length:  # the encoder may have stopped early: which is longer?
            texts = pairs.queries[pairs.query_cells[row]], pairs.documents[row]
            encoded = self.encoder.encode([(text, COMPARED * pairs.max_length) for text in texts])
            query, document = (ids for ids, _ in encoded)
        return len(query), len(document)

    def tensors(self, ids, lengths, query_lengths, truncated):
        """The output tensors of one request; rows are padded on the right to the smallest bucket."""
        width = self.limits.bucket(int(lengths.max()))
        is_token = np.arange(width, dtype=np.int32) < lengths[:, None]  # [num_pairs, width]
        input_ids = np.full(is_token.shape, self.pad_id, np.int32)
        input_ids[is_token] = np.frombuffer(ids, np.int32)
        attention_mask = is_token.astype(np.int32)
        if self.layout.has_types:
            attention_mask[is_token] += self.layout.types(np.array(query_lengths, np.int32), lengths)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "num_tokens": lengths[:, None],
            "truncated": np.array(truncated, bool)[:, None],
        }


def longest_first(query, document, room):
    """Tokens of the query that remain in `room` if the longer of the two texts loses tokens first.

    Source: truncate_encodings of the library tokenizers. Both keep half of the room if both are longer than that; an
    odd token belongs to the longer text, or to the document if they are equally long.
    """
    if query + document <= room:
        return query
    half = room // 2
    return min(query, half) if query <= document else room - min(document, half)


def ended(ids, length, end):
    """A text that is cut to `length` tokens, the last of them `end`."""
    return ids[: length - len(end)] + end


def load_tokenizer(path):
    """The tokenizer of the checkpoint, or an error that names the command that installs one."""
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.truncation is None or tokenizer.padding is None:
        raise pb_utils.TritonModelException(
            f"{path} lacks truncation.max_length or padding.pad_id: install it with `triton-rerank-build export`"
        )
    return tokenizer


def read_manifest(path):
    """The builder's manifest; an empty one if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def model_info(manifest, limits):
    """The output `model_info`, JSON: the builder's manifest, and the limits that hold here."""
    facts = manifest | {
        "max_length": limits.max_length,
        "default_max_length": limits.default_max_length,
        "buckets": limits.buckets,
    }
    return json.dumps(facts, ensure_ascii=False).encode()
