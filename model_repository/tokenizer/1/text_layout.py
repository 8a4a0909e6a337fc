"""How the tokens of a pair are laid out in a row, as `layout` of the builder's manifest describes it.

A row is [instruction] before query between document after: token ids of the checkpoint around the texts. A text is
encoded together with its `prefix` and `suffix`, since tokens may reach across its ends; one that is cut ends with the
ids `end` instead.
"""

from functools import lru_cache

import numpy as np
from text_pairs import BadRequestError

MAX_INSTRUCTION_CHARS = 4096
KNOWN_INSTRUCTIONS = 256
PLAIN_TEXT = {"prefix": "", "suffix": "", "end": []}


class TextLayout:
    """The layout of a checkpoint.

    Args:
        tokenizer: A `tokenizers.Tokenizer`, without truncation and padding.
        described: `layout` of the manifest; None in repositories of earlier releases, which have the layout of the
            tokenizer's own template.
        token_types: Whether the graph reads token types from `attention_mask`.
    """

    def __init__(self, tokenizer, described, *, token_types):
        described = described or template_layout(tokenizer)
        self.before, self.between, self.after = (described[name] for name in ("before", "between", "after"))
        self.query, self.document = described["query"], described["document"]
        self.query_end, self.document_end = self.query["end"], self.document["end"]
        # Where texts alone are the row, as in cross-encoders, a pair needs one token of each.
        self.least_query, self.least_document = len(self.query_end) + 1, len(self.document_end) + 1
        self._instruction = described["instruction"]
        self._tokenizer = tokenizer
        # One number for each special token and for each text, in the order of a row.
        self._types = np.array(described["token_types"], np.int32)
        self._query, self._document = len(self.before), len(self.before) + 1 + len(self.between)
        self.has_types = token_types and bool(self._types.any())
        self._told = lru_cache(KNOWN_INSTRUCTIONS)(self._encode_instruction)

    def start(self, parameters):
        """Token ids before the query, for a request with these parameters.

        Raises:
            BadRequestError: Its instruction is not text, is too long, or the model takes none.
        """
        asked = parameters.get("instruction")
        if self._instruction is None:
            if asked is not None:
                raise BadRequestError("this checkpoint takes no instruction; leave the parameter out")
            return self.before
        if asked is not None and not isinstance(asked, str):
            raise BadRequestError(f"instruction must be text, got {asked!r}")
        if asked is not None and len(asked) > MAX_INSTRUCTION_CHARS:
            raise BadRequestError(f"instruction must have at most {MAX_INSTRUCTION_CHARS} characters, got {len(asked)}")
        return self._told(self._instruction["default"] if asked is None else asked)

    def num_special(self, start):
        """Tokens of a row apart from query and document, where `start` comes before the query."""
        return len(start) + len(self.between) + len(self.after)

    def types(self, query_lengths, lengths):
        """Token types of all rows, one row after another, from their numbers of query tokens and of all tokens."""
        counts = np.ones((len(lengths), len(self._types)), np.int32)
        counts[:, self._query] = query_lengths
        counts[:, self._document] = lengths - query_lengths - (len(self._types) - 2)
        return np.repeat(np.tile(self._types, len(lengths)), counts.ravel())

    def _encode_instruction(self, text):
        ends = self._instruction["text"]
        encoding = self._tokenizer.encode(ends["prefix"] + text + ends["suffix"], add_special_tokens=False)
        return [*self._instruction["before"], *encoding.ids, *self.before]


def template_layout(tokenizer):
    """The layout of the template in tokenizer.json."""
    encoding = tokenizer.encode("a", "b")
    tokens = list(zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True))
    sides = [side for side, _, _ in tokens]  # 0 = query, 1 = document, None = special token
    query, document = sides.index(0), sides.index(1)
    groups = (tokens[:query], tokens[query:document], tokens[document:])
    special = [[token for token in group if token[0] is None] for group in groups]
    before, between, after = ([token_id for _, token_id, _ in group] for group in special)
    types = [[token_type for _, _, token_type in group] for group in special]
    return {
        "before": before,
        "between": between,
        "after": after,
        "token_types": [*types[0], tokens[query][2], *types[1], tokens[document][2], *types[2]],
        "query": PLAIN_TEXT,
        "document": PLAIN_TEXT,
        "instruction": None,
    }
