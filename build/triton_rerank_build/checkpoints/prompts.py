"""Prompts of decoder rerankers: what a language model is told around query and document, and its two answers.

A checkpoint of such a model does not hold its prompt, so it stands here, by family.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """The prompt of a family. Before a text stands a blank, which belongs to its first token, after it a line break.

    Attributes:
        system: From the beginning to the instruction's name.
        instruction: The instruction of calls that bring none.
        query: The query's name.
        document: The document's name.
        end: From the document's end to the answer.
        relevant: The answer that stands for relevance, one token.
        irrelevant: The other one.
    """

    system: tuple[str, str]
    instruction: str
    query: str
    document: str
    end: str
    relevant: str
    irrelevant: str

    def text(self, query: str, document: str, instruction: str | None = None) -> str:
        """What stands between the first part of `system` and `end`, in one piece."""
        told = self.instruction if instruction is None else instruction
        return f"{self.system[1]} {told}\n{self.query} {query}\n{self.document} {document}"


# Source: the usage example in the README of Qwen/Qwen3-Reranker-0.6B.
PROMPTS: Mapping[str, Prompt] = {
    "qwen3": Prompt(
        system=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
            "<Instruct>:",
        ),
        instruction="Given a web search query, retrieve relevant passages that answer the query",
        query="<Query>:",
        document="<Document>:",
        end="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        relevant="yes",
        irrelevant="no",
    )
}
