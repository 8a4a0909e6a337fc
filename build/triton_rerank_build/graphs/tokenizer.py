"""The checkpoint's tokenizer.json: prepared for serving, and compared with what transformers makes of it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_rerank_build.checkpoints.resolve import Checkpoint
from triton_rerank_build.errors import ParityError, UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def load_tokenizer(checkpoint: Checkpoint) -> "Tokenizer":
    """Read tokenizer.json as it stands.

    Raises:
        UnsupportedModelError: The file cannot be parsed.
    """
    from tokenizers import Tokenizer

    path = checkpoint.folder / "tokenizer.json"
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing narrower
        raise UnsupportedModelError(f"tokenizer.json of {checkpoint.name} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", path: Path, *, max_length: int, pad_id: int) -> None:
    """Write a tokenizer.json that also holds both limits the server needs.

    They stand in the standard fields, so that the server reads one file and no second source can disagree:
    truncation.max_length is the longest pair the graph takes (of a pair only the document is cut), and
    padding.pad_id the id that fills a row.

    Raises:
        UnsupportedModelError: The tokenizer has no such token.
    """
    from tokenizers import Tokenizer

    prepared = Tokenizer.from_str(tokenizer.to_str())
    if (pad_token := prepared.id_to_token(pad_id)) is None:
        raise UnsupportedModelError(f"tokenizer.json has no token with the padding id {pad_id} of config.json")
    prepared.enable_truncation(max_length, strategy="only_second")
    prepared.enable_padding(pad_id=pad_id, pad_token=pad_token)
    prepared.save(str(path))


def encode_pair(
    tokenizer: "Tokenizer",
    query: str,
    document: str,
    *,
    query_length: int | None = None,
    length: int | None = None,
) -> "Encoding":
    """Tokens of a pair, its special tokens included.

    Args:
        tokenizer: From `load_tokenizer`.
        query: The search text.
        document: The text to rank.
        query_length: Most tokens of the query alone; None cuts nothing.
        length: Most tokens of the whole; only the document is cut. None cuts nothing.
    """
    first = tokenizer.encode(query, add_special_tokens=False)
    second = tokenizer.encode(document, add_special_tokens=False)
    if query_length is not None:
        first.truncate(query_length)
    if length is not None:
        room = length - tokenizer.num_special_tokens_to_add(is_pair=True) - len(first)
        second.truncate(max(0, room))
    return tokenizer.post_process(first, second)


def has_token_types(tokenizer: "Tokenizer", checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer's template gives tokens of type 1, and the network has a vector for them.

    The templates of BERT's tokenizers do, those of RoBERTa and XLM-R do not, whichever network a checkpoint has.
    """
    from transformers import AutoConfig

    types = encode_pair(tokenizer, "a", "b").type_ids
    return any(types) and AutoConfig.from_pretrained(str(checkpoint.folder)).type_vocab_size > 1


def check_vocabulary(tokenizer: "Tokenizer", vocab_size: int, name: str) -> None:
    """Prove that the network has a row for every id the tokenizer can give.

    Raises:
        UnsupportedModelError: It has not: the graph would fail on the first text with such a token.
    """
    if (largest := max(tokenizer.get_vocab().values())) >= vocab_size:
        raise UnsupportedModelError(
            f"tokenizer.json of {name} gives ids up to {largest}, but the model has {vocab_size} embeddings"
        )


def check_same_ids(
    tokenizer: "Tokenizer", checkpoint: Checkpoint, pairs: Iterable[tuple[str, str]], *, token_types: bool = False
) -> None:
    """Prove that tokenizer.json alone gives the ids, and the token types if asked, that transformers gives.

    Raises:
        ParityError: A pair gets other ids or types.
        UnsupportedModelError: A token has a type beyond 1.
    """
    from transformers import AutoTokenizer

    reference: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder))
    for query, document in pairs:
        # In lists: alone, an empty document counts as none.
        encoded = reference([query], [document])
        expected = encoded["input_ids"][0]
        encoding = encode_pair(tokenizer, query, document)
        if token_types:
            # Where only the generic tokenizer class is named, transformers 5 returns no types; transformers 4 did.
            types = encoded.get("token_type_ids", [encoding.type_ids])[0]
            _check_same_types(encoding, types, checkpoint.name)
        if (found := encoding.ids) != expected:
            raise ParityError(
                f"tokenizer.json of {checkpoint.name} gives other ids than transformers for "
                f"{query[:40]!r} + {document[:40]!r}: {found[:12]} ... instead of {expected[:12]} ..."
            )


def _check_same_types(encoding: "Encoding", expected: list[int], name: str) -> None:
    if max(encoding.type_ids) > 1:
        raise UnsupportedModelError(f"tokenizer.json of {name} gives token type {max(encoding.type_ids)}; 0 and 1 work")
    if encoding.type_ids != expected:
        raise ParityError(
            f"tokenizer.json of {name} gives other token types than transformers: "
            f"{encoding.type_ids[:24]} ... instead of {expected[:24]} ..."
        )


def check_same_text_ids(tokenizer: "Tokenizer", checkpoint: Checkpoint, texts: Iterable[str]) -> None:
    """Prove for single texts, without special tokens, what `check_same_ids` proves for pairs.

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
