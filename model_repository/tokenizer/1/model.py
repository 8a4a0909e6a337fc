"""Tokenizer of the reranker: (query, document) pairs of text -> padded token ids.

Runs inside Triton's Python stub, with text_pairs.py beside it; both need only `numpy` and `tokenizers`.

The rule is that of the bge-reranker authors (FlagEmbedding, FlagReranker): query and document are encoded
separately, without special tokens; the query is cut to `query_max_length` (by default 3/4 of `max_length`); then only
the document is cut, from its right end, to the room that is left. With `query_max_length` 0 the rule is that of
sentence-transformers: of query and document the longer loses tokens first (`longest_first` in transformers).

`tokenizer.json` beside this file carries two facts of the checkpoint, in the fields that its format has for them:
truncation.max_length (the limit of a pair) and padding.pad_id.
"""

import json
from array import array
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from text_pairs import BadRequestError, TextEncoder, read_requests, whole_number
from tokenizers import Tokenizer

# Of two texts beyond max_length the longer keeps one token more if the room is odd; they are compared up to this many
# times max_length.
COMPARED = 16


class Limits:
    """Token limits: the checkpoint's, the default, and those that a request asks for."""

    def __init__(self, tokenizer, parameters):
        self.max_length = tokenizer.truncation["max_length"]
        self.default_max_length = min(int(parameters["default_max_length"]), self.max_length)
        self.num_special = tokenizer.num_special_tokens_to_add(True)
        steps = sorted(int(bucket) for bucket in parameters["buckets"].split())
        self.buckets = [bucket for bucket in steps if bucket < self.max_length] + [self.max_length]

    def of_request(self, parameters):
        """`max_length` and `query_max_length` of a request with these parameters."""
        max_length = self.of_pair(parameters)
        return max_length, self.of_query(parameters, max_length)

    def of_pair(self, parameters):
        """`max_length`: with room for a query token and a document token."""
        asked = whole_number(parameters, "max_length", self.default_max_length)
        low = self.num_special + 2
        if not low <= asked <= self.max_length:
            raise BadRequestError(
                f"max_length must be {low} to {self.max_length} tokens for this checkpoint, got {asked}"
            )
        return asked

    def of_query(self, parameters, max_length):
        """`query_max_length`: by default 3/4 of max_length, as in FlagReranker; 0 for no limit of its own."""
        high = max_length - self.num_special - 1
        asked = whole_number(parameters, "query_max_length", None)
        if asked is None:
            return min(max_length * 3 // 4, high)
        if not 0 <= asked <= high:
            raise BadRequestError(
                f"query_max_length must be 1 to {high} tokens (max_length {max_length} less {self.num_special} special "
                f"tokens and one of the document), or 0 to cut the longer of query and document; got {asked}"
            )
        return asked

    def bucket(self, length):
        """The smallest bucket that holds `length` tokens."""
        return next(bucket for bucket in self.buckets if bucket >= length)


class PairTemplate:
    """Special tokens around the two texts, and the token types, read off the checkpoint's own template.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        token_types: Whether the graph reads token types from `attention_mask`.
    """

    def __init__(self, tokenizer, token_types):
        encoding = tokenizer.encode("a", "b")
        tokens = list(zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True))
        sides = [side for side, _, _ in tokens]  # 0 = query, 1 = document, None = special token
        query, document = sides.index(0), sides.index(1)
        groups = (tokens[:query], tokens[query:document], tokens[document:])
        special = [[token for token in group if token[0] is None] for group in groups]
        self.before, self.between, self.after = ([token_id for _, token_id, _ in group] for group in special)
        query_type, document_type = (tokens[sides.index(side)][2] for side in (0, 1))
        types = [[token_type for _, _, token_type in group] for group in special]
        # One number for each special token and for each text, in the order of a row.
        self._types = np.array([*types[0], query_type, *types[1], document_type, *types[2]], np.int32)
        self._query, self._document = len(types[0]), len(types[0]) + 1 + len(types[1])
        self.has_types = token_types and bool(self._types.any())

    def types(self, query_lengths, lengths):
        """Token types of all rows, one row after another, from their numbers of query tokens and of all tokens."""
        counts = np.ones((len(lengths), len(self._types)), np.int32)
        counts[:, self._query] = query_lengths
        counts[:, self._document] = lengths - query_lengths - (len(self._types) - 2)
        return np.repeat(np.tile(self._types, len(lengths)), counts.ravel())


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the tokenizer."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        manifest = read_manifest(folder / "manifest.json")
        self.limits = Limits(tokenizer, parameters)
        self.pad_id = tokenizer.padding["pad_id"]
        self.info = model_info(manifest, self.limits)
        self.encoder = TextEncoder(tokenizer)
        self.template = PairTemplate(tokenizer, manifest.get("token_types", False))

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
        template = self.template
        encoded = self.encoder.encode_requests(batch, self.limits.max_length)
        for pairs, (query_ids, document_ids) in zip(batch, encoded, strict=True):
            ids, ends, query_lengths, truncated = array("i"), [0], [], []
            for row, (cell, (document, document_cut)) in enumerate(zip(pairs.query_cells, document_ids, strict=True)):
                query, query_cut = query_ids[cell]
                room = pairs.max_length - self.limits.num_special
                limit = pairs.query_max_length or longest_first(*self.lengths(pairs, row, query, document), room)
                kept = query[:limit]
                room -= len(kept)
                ids.fromlist(template.before + kept + template.between)
                ids.fromlist(document if len(document) <= room else document[:room])
                ids.fromlist(template.after)
                ends.append(len(ids))
                query_lengths.append(len(kept))
                truncated.append(document_cut or query_cut or len(document) > room or len(query) > len(kept))
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
        if self.template.has_types:
            attention_mask[is_token] += self.template.types(np.array(query_lengths, np.int32), lengths)
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
