"""How the tokens of a pair are laid out in a row: a fact of the checkpoint, which the served tokenizer needs too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FIRST, LAST = "first", "last"


@dataclass(frozen=True)
class Row:
    """The tokens of a pair, special tokens included.

    Attributes:
        ids: Token ids.
        type_ids: Token type of each, 0 or 1.
    """

    ids: list[int]
    type_ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TextEnds:
    """Text that is encoded together with a query, document or instruction, since tokens may reach across its ends.

    Attributes:
        prefix: Before the text.
        suffix: After the text.
        end: Token ids of `suffix`, which end a text that was cut.
    """

    prefix: str = ""
    suffix: str = ""
    end: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TextEnds":
        """Build from parsed JSON."""
        return cls(**{**content, "end": tuple(content["end"])})


@dataclass(frozen=True)
class Instruction:
    """What an instructed model is told before the query.

    Attributes:
        default: The instruction of calls that bring none.
        before: Token ids before it.
        text: What is encoded with it.
    """

    default: str
    before: tuple[int, ...]
    text: TextEnds

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Instruction":
        """Build from parsed JSON."""
        return cls(content["default"], tuple(content["before"]), TextEnds.from_dict(content["text"]))


@dataclass(frozen=True)
class TextLayout:
    """A row: [instruction] before query between document after, then padding. Only the document is cut.

    Attributes:
        before: Token ids before the query.
        between: Token ids between query and document.
        after: Token ids after the document.
        pad_id: Fills a row.
        token_types: Types of `before`, the query, `between`, the document and `after`, a number for each special token
            and one for each text; empty if all tokens are of type 0.
        score_at: The token whose state is scored, "first" or "last".
        query: What is encoded with the query.
        document: What is encoded with the document.
        instruction: None if the model takes none.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    pad_id: int
    token_types: tuple[int, ...] = ()
    score_at: str = FIRST
    query: TextEnds = field(default_factory=TextEnds)
    document: TextEnds = field(default_factory=TextEnds)
    instruction: Instruction | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TextLayout":
        """Build from parsed JSON."""
        ids = {name: tuple(content[name]) for name in ("before", "between", "after", "token_types")}
        ends = {name: TextEnds.from_dict(content[name]) for name in ("query", "document")}
        instruction = content["instruction"] and Instruction.from_dict(content["instruction"])
        return cls(**{**content, **ids, **ends, "instruction": instruction})

    @property
    def num_special(self) -> int:
        """Tokens of a row apart from query, document and instruction."""
        told = self.instruction.before if self.instruction else ()
        return len(told) + len(self.before) + len(self.between) + len(self.after)

    def row(self, query: Sequence[int], document: Sequence[int], instruction: Sequence[int] = ()) -> Row:
        """The row of a pair.

        Args:
            query: Its token ids, after truncation.
            document: Likewise.
            instruction: Likewise, with the `TextEnds` of the layout's instruction.
        """
        told = [*self.instruction.before, *instruction] if self.instruction else []
        ids = [*told, *self.before, *query, *self.between, *document, *self.after]
        if not self.token_types:
            return Row(ids, [0] * len(ids))
        texts = {len(self.before): len(query), len(self.before) + 1 + len(self.between): len(document)}
        types = [kind for index, kind in enumerate(self.token_types) for _ in range(texts.get(index, 1))]
        return Row(ids, types)
