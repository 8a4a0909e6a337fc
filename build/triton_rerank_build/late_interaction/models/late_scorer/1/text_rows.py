"""How the texts of late interaction become rows of token ids, by the `settings` in `manifest.json`.

A row is the checkpoint's tokens before the text, the text, cut from its right end, and the tokens after it; a query may
be filled up to a fixed length with [MASK], as in ColBERT. Query and document never share a row, and a document's limit
does not depend on its query, so a document has the same ids, and the same vectors, for every query.
"""

import hashlib

import numpy as np
from text_pairs import BadRequestError, whole_number

# The role of a token: other tokens attend to it, its vector counts in the score, or both.
ATTENDED, SCORED = 1, 2


class Side:
    """How a query, or a document, becomes a row of token ids."""

    def __init__(self, kind, settings, unscored_ids=()):
        self.kind = kind
        self.prefix = settings["prefix"]
        self.before, self.after = settings["before"], settings["after"]
        self.max_length = settings["max_length"]
        self.fill_id = settings["fill_id"]
        self.special_role = ATTENDED | SCORED if settings["special_scored"] else ATTENDED
        self.unscored_ids = np.array(unscored_ids, np.int32)
        self.num_special = len(self.before) + len(self.after)

    def key(self, cell, max_length):
        """The cache's key of a text in UTF-8 whose row has at most `max_length` tokens."""
        return hashlib.blake2b(cell, digest_size=16, person=b"%.1s%d" % (self.kind.encode(), max_length)).digest()

    def row(self, ids, max_length):
        """Token ids of a row, their roles, and whether it lacks some of the text's `ids`."""
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
