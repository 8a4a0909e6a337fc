"""The checkpoint's tokenizer.json: prepare it for serving, and compare its ids with those of transformers."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank_build.checkpoints.families import family_of
from triton_rerank_build.checkpoints.layout import TextLayout
from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import ParityError, UnsupportedModelError
from triton_rerank_build.graphs.rows import encode_pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(checkpoint: Checkpoint) -> "Tokenizer":
    """Read tokenizer.json, without truncation and padding.

    Raises:
        UnsupportedModelError: The file cannot be parsed.
    """
    from tokenizers import Tokenizer

    path = checkpoint.folder / "tokenizer.json"
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain exceptions
        raise UnsupportedModelError(f"tokenizer.json of {checkpoint.name} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", path: Path, *, max_length: int, pad_id: int) -> None:
    """Write the tokenizer.json of the server, with two settings in its standard fields.

    truncation.max_length is the longest pair that the graph accepts (only the document is cut), and padding.pad_id the
    id that fills a row.

    Raises:
        UnsupportedModelError: The tokenizer has no token with the id `pad_id`.
    """
    from tokenizers import Tokenizer

    prepared = Tokenizer.from_str(tokenizer.to_str())
    if (pad_token := prepared.id_to_token(pad_id)) is None:
        raise UnsupportedModelError(f"tokenizer.json has no token with the padding id {pad_id} of config.json")
    prepared.enable_truncation(max_length, strategy="only_second")
    prepared.enable_padding(pad_id=pad_id, pad_token=pad_token)
    prepared.save(str(path))


def cut(tokenizer: "Tokenizer", text: str, length: int) -> str:
    """The beginning of a text that takes at most `length` tokens."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= length else text[: offsets[length - 1][1]]


def has_token_types(tokenizer: "Tokenizer", checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer's template gives tokens of type 1, and the network has a vector for them.

    The templates of BERT's tokenizers do, those of RoBERTa and XLM-R do not, whichever network a checkpoint has.
    """
    from transformers import AutoConfig

    types = tokenizer.encode("a", "b").type_ids
    if not any(types) or not family_of(checkpoint.family).token_types:
        return False
    return bool(getattr(AutoConfig.from_pretrained(str(checkpoint.folder)), "type_vocab_size", 0) > 1)


def check_vocabulary(tokenizer: "Tokenizer", vocab_size: int, name: str) -> None:
    """Check that the word table has a row for every id of the tokenizer.

    Raises:
        UnsupportedModelError: It has not; the graph would fail on the first text with such an id.
    """
    if (largest := max(tokenizer.get_vocab().values())) >= vocab_size:
        raise UnsupportedModelError(
            f"tokenizer.json of {name} gives ids up to {largest}, but the model has {vocab_size} embeddings"
        )


def check_same_ids(
    tokenizer: "Tokenizer", checkpoint: Checkpoint, pairs: Iterable[tuple[str, str]], layout: TextLayout
) -> None:
    """Check that tokenizer.json and the layout give the ids and types of transformers, which also reads other files.

    Raises:
        ParityError: A pair gets other ids or types.
        UnsupportedModelError: A token has a type beyond 1.
    """
    from transformers import AutoTokenizer

    if layout.token_types and max(layout.token_types) > 1:
        raise UnsupportedModelError(
            f"tokenizer.json of {checkpoint.name} gives token type {max(layout.token_types)}; 0 and 1 work"
        )
    reference: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder))
    for query, document in pairs:
        # In lists, since transformers takes a single empty document for none.
        encoded = reference([query], [document])
        expected = encoded["input_ids"][0]
        row = encode_pair(tokenizer, layout, query, document)
        if row.ids != expected:
            raise ParityError(
                f"tokenizer.json of {checkpoint.name} gives other ids than transformers for "
                f"{query[:40]!r} + {document[:40]!r}: {row.ids[:12]} ... instead of {expected[:12]} ..."
            )
        # Where only the generic tokenizer class is named, transformers 5 returns no types; transformers 4 did.
        types = encoded.get("token_type_ids", [row.type_ids])[0]
        if layout.token_types and row.type_ids != types:
            raise ParityError(
                f"tokenizer.json of {checkpoint.name} gives other token types than transformers: "
                f"{row.type_ids[:24]} ... instead of {types[:24]} ..."
            )


def check_same_text_ids(tokenizer: "Tokenizer", checkpoint: Checkpoint, texts: Iterable[str]) -> None:
    """As `check_same_ids`, for single texts without special tokens.

    Raises:
        ParityError: tokenizer.json gives other ids than transformers for one of `texts`.
    """
    from transformers import AutoTokenizer

    reference: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder))
    for text in texts:
        expected = reference([text], add_special_tokens=False)["input_ids"][0]
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise ParityError(
                f"tokenizer.json of {checkpoint.name} gives other ids than transformers for {text[:40]!r}: "
                f"{found[:12]} ... instead of {expected[:12]} ..."
            )
