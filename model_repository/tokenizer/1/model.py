"""Tokenizer of the reranker: (query, document) pairs of text -> padded token ids.

Stands alone on purpose: in NVIDIA's container only `numpy` and `tokenizers` are there beside it.

The rule is the one the bge-reranker authors use (FlagEmbedding, FlagReranker): query and document are encoded
apart, without special tokens; the query is cut to `query_max_length` (3/4 of `max_length` unless asked
otherwise); then only the document is cut, from its right end, to the room that is left.

`tokenizer.json` beside this file carries the two facts of the checkpoint that are needed here, in the fields
that the format has for them: truncation.max_length (the limit of a pair) and padding.pad_id.
"""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

# A document is encoded from its head as long as that yields enough tokens: what lies beyond can't survive the cut.
HEAD_CHARS_PER_TOKEN = 16
# Cutting text in the middle can change the last few tokens before the cut; these are never used.
HEAD_MARGIN_TOKENS = 64


class BadRequestError(ValueError):
    """The request itself is wrong: it gets INVALID_ARGUMENT with this message, its neighbours get their answers."""


class PairRequest:
    """One request: its texts, its limits, and where its queries stand in the shared list of distinct ones."""

    def __init__(self, request, limits):
        self.query_cells = text_cells(request, "query")
        document_cells = text_cells(request, "document")
        parameters = json.loads(request.parameters() or "{}")
        self.max_length = limits.of_pair(parameters)
        self.query_max_length = limits.of_query(parameters, self.max_length)
        self.documents = [decode(cell, "document", row) for row, cell in enumerate(document_cells)]
        first_rows = {cell: self.query_cells.index(cell) for cell in dict.fromkeys(self.query_cells)}
        self.queries = {cell: decode(cell, "query", row) for cell, row in first_rows.items()}


class Limits:
    """Token limits: the checkpoint's, the default, and what a request may ask for."""

    def __init__(self, tokenizer, parameters):
        self.max_length = tokenizer.truncation["max_length"]
        self.default_max_length = min(int(parameters["default_max_length"]), self.max_length)
        self.num_special = tokenizer.num_special_tokens_to_add(True)
        steps = sorted(int(bucket) for bucket in parameters["buckets"].split())
        self.buckets = [bucket for bucket in steps if bucket < self.max_length] + [self.max_length]

    def of_pair(self, parameters):
        """`max_length` of a request: a whole number with room for a query token and a document token."""
        asked = whole_number(parameters, "max_length", self.default_max_length)
        low = self.num_special + 2
        if not low <= asked <= self.max_length:
            raise BadRequestError(
                f"max_length must be {low} to {self.max_length} tokens for this checkpoint, got {asked}"
            )
        return asked

    def of_query(self, parameters, max_length):
        """`query_max_length` of a request: by default 3/4 of max_length, as FlagReranker has it."""
        high = max_length - self.num_special - 1
        asked = whole_number(parameters, "query_max_length", None)
        if asked is None:
            return min(max_length * 3 // 4, high)
        if not 1 <= asked <= high:
            raise BadRequestError(
                f"query_max_length must be 1 to {high} tokens: max_length {max_length} less "
                f"{self.num_special} special tokens and one of the document; got {asked}"
            )
        return asked

    def bucket(self, length):
        """The smallest bucket that holds `length` tokens."""
        return next(bucket for bucket in self.buckets if bucket >= length)


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Load the tokenizer, and encode once so that READY means warm."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.folder = Path(args["model_repository"]) / args["model_version"]
        # Before the first call: the Rust threads of every instance share the cores, and are made on first use.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self.tokenizer = load_tokenizer(self.folder / "tokenizer.json")
        self.limits = Limits(self.tokenizer, parameters)
        self.pad_id = self.tokenizer.padding["pad_id"]
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.info = self.model_info()
        self.before, self.between, self.after = special_layout(self.tokenizer)
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
        for (place, request, _), (rows, truncated) in zip(good, answers, strict=True):
            responses[place] = self.response(request, rows, truncated)
        return responses

    def tokenize(self, batch):
        """Yield, for each request of `batch`, the token ids of its pairs and whether text was cut from them."""
        queries = {cell: text for pairs in batch for cell, text in pairs.queries.items()}
        documents = [(text, pairs.max_length) for pairs in batch for text in pairs.documents]
        encoded = iter(self.encode([(text, self.limits.max_length) for text in queries.values()] + documents))
        query_ids = {cell: next(encoded) for cell in queries}
        for pairs in batch:
            rows, cut = [], []
            for cell in pairs.query_cells:
                query, document = query_ids[cell], next(encoded)
                kept = query[: pairs.query_max_length]
                room = pairs.max_length - self.limits.num_special - len(kept)
                rows.append(self.before + kept + self.between + document[:room] + self.after)
                cut.append(len(document) > room or len(query) > len(kept))
            yield rows, cut

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

    def response(self, request, rows, truncated):
        """The tensors of one request; rows padded on the right to the smallest bucket."""
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        width = self.limits.bucket(int(lengths.max()))
        mask = np.arange(width, dtype=np.int32) < lengths[:, None]  # [num_pairs, width]
        input_ids = np.full(mask.shape, self.pad_id, np.int32)
        input_ids[mask] = np.concatenate(rows)
        tensors = {
            "input_ids": input_ids,
            "attention_mask": mask.astype(np.int32),
            "num_tokens": lengths[:, None],
            "truncated": np.array(truncated, bool)[:, None],
        }
        asked = set(request.requested_output_names())
        if "model_info" in asked:
            tensors["model_info"] = np.full((len(rows), 1), self.info, object)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, tensor) for name, tensor in tensors.items() if name in asked]
        )

    def model_info(self):
        """What a client may want to know, as JSON: the builder's manifest and the limits that hold here."""
        manifest = self.folder / "manifest.json"
        facts = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        facts |= {
            "max_length": self.limits.max_length,
            "default_max_length": self.limits.default_max_length,
            "buckets": self.limits.buckets,
        }
        return json.dumps(facts, ensure_ascii=False).encode()


def load_tokenizer(path):
    """The tokenizer of the checkpoint, or an error that says how to install one."""
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.truncation is None or tokenizer.padding is None:
        raise pb_utils.TritonModelException(
            f"{path} lacks truncation.max_length or padding.pad_id: install it with `triton-rerank-build export`"
        )
    return tokenizer


def special_layout(tokenizer):
    """Special token ids before, between and after the two texts, read off the checkpoint's own template."""
    encoding = tokenizer.encode("a", "b")
    groups, current = [], []
    for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if special:
            current.append(token)
        elif not groups or current:
            groups.append(current)
            current = []
    return groups[0], groups[1], current


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


def refusal(message):
    """An INVALID_ARGUMENT answer; it passes through the ensemble unchanged."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
