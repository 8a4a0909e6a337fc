"""The rows of a decoder reranker: its prompt in token ids, compared with transformers' tokenizer on the whole text."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from triton_rerank_build.checkpoints.layout import LAST, Instruction, TextEnds, TextLayout
from triton_rerank_build.checkpoints.prompts import Prompt
from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import ParityError, UnsupportedModelError
from triton_rerank_build.graphs.rows import encode_pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def prompt_layout(tokenizer: "Tokenizer", prompt: Prompt, checkpoint: Checkpoint) -> TextLayout:
    """The layout of a pair in a prompt.

    A text is encoded with the blank before it and the line break after it, which belong to its first and last tokens.
    """

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    line = TextEnds(" ", "\n", ids("\n"))
    told = Instruction(prompt.instruction, tuple(token for text in prompt.system for token in ids(text)), line)
    return TextLayout(
        before=ids(prompt.query),
        between=ids(prompt.document),
        after=ids(prompt.end),
        pad_id=checkpoint.pad_token_id,
        score_at=LAST,
        query=line,
        document=TextEnds(" "),
        instruction=told,
    )


def answer_ids(tokenizer: "Tokenizer", prompt: Prompt, checkpoint: Checkpoint) -> tuple[int, int]:
    """Token ids of the relevant and of the irrelevant answer.

    Raises:
        UnsupportedModelError: One of them is not a token, or modules of sentence-transformers name others.
    """
    relevant, irrelevant = (tokenizer.token_to_id(answer) for answer in (prompt.relevant, prompt.irrelevant))
    if relevant is None or irrelevant is None:
        raise UnsupportedModelError(
            f"tokenizer.json of {checkpoint.name} has no tokens {prompt.relevant!r} and {prompt.irrelevant!r}, the "
            "answers of a decoder reranker"
        )
    if checkpoint.answers not in (None, (relevant, irrelevant)):
        raise UnsupportedModelError(
            f"{checkpoint.name} answers with the tokens {checkpoint.answers}, not with {prompt.relevant!r} and "
            f"{prompt.irrelevant!r}, so its prompt is another one than that of Qwen3-Reranker"
        )
    return relevant, irrelevant


def check_same_prompts(
    tokenizer: "Tokenizer",
    checkpoint: Checkpoint,
    prompt: Prompt,
    pairs: Iterable[tuple[str, str]],
    layout: TextLayout,
) -> None:
    """Check that the layout gives the ids of the authors' code, which encodes instruction, query and document in one.

    Raises:
        ParityError: A pair gets other ids.
    """
    from transformers import AutoTokenizer

    reference: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder))
    for query, document in pairs:
        texts = (prompt.system[0], prompt.text(query, document), prompt.end)
        expected = [token for text in texts for token in reference(text, add_special_tokens=False)["input_ids"]]
        if (found := encode_pair(tokenizer, layout, query, document).ids) != expected:
            first = next(index for index, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
            raise ParityError(
                f"tokenizer.json of {checkpoint.name} gives other ids than the prompt in one piece for "
                f"{query[:40]!r} + {document[:40]!r}, from token {first} on: {found[first : first + 8]} instead of "
                f"{expected[first : first + 8]}"
            )
