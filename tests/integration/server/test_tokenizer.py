"""The tokenizer model against transformers, on hard cases."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer
from tritonclient.utils import InferenceServerException

from support import raw
from support.texts import PAIRS
from triton_rerank_build.checkpoints.demo import demo_checkpoint

SENTENCE = "The quick brown fox jumps over the lazy dog while 深度学习 и книги لا تنتهي。"
HARD = [
    ("short", ""),
    ("short", "   \n\t "),
    ("emoji 👩‍👩‍👧‍👦 🏳️‍🌈", "👍🏽" * 40 + " e\u0301 é ﬁ ① ｆｕｌｌ"),
    ("special </s> tokens", "a </s> inside <s> a <pad> document <mask> and <unk> </s></s>"),
    ("mixed scripts", SENTENCE * 3),
    ("blanks", "a" + " " * 30_000 + "b"),
    ("unknown characters", "\U0001f9ff\ue000" * 9_000 + " end"),
    ("2,000 tokens", " ".join(f"word{n} 数字{n}" for n in range(500))),
    ("without blanks", "深度学习模型的泛化能力" * 3_000),
    ("NUL", "before\0after"),
    ("joined by zero width", "ab\u200bcd\u200d\ufeffef"),
    (SENTENCE * 60, SENTENCE * 60),
    (SENTENCE * 60, "short"),
]


@pytest.fixture(scope="module")
def oracle():
    return AutoTokenizer.from_pretrained(demo_checkpoint())


def reference(oracle, query, document, max_length=512, query_max_length=None):
    """The rule of FlagReranker, spelled out on transformers' ids."""
    query_ids = oracle(query, add_special_tokens=False)["input_ids"][: query_max_length or max_length * 3 // 4]
    document_ids = oracle(document, add_special_tokens=False)["input_ids"]
    bos, eos = oracle.bos_token_id, oracle.eos_token_id
    room = max_length - len(query_ids) - 4
    return [bos, *query_ids, eos, eos, *document_ids[:room], eos]


def ids_of(answer):
    return [row[: mask.sum()].tolist() for row, mask in zip(answer["input_ids"], answer["attention_mask"], strict=True)]


@pytest.mark.parametrize("limits", [{}, {"max_length": 64}, {"max_length": 100, "query_max_length": 20}])
def test_ids_are_the_references(server, oracle, limits):
    answer = raw.tokenize(server.grpc_url, HARD, **limits)
    for ids, (query, document) in zip(ids_of(answer), HARD, strict=True):
        assert ids == reference(oracle, query, document, **limits), query[:30]


def test_ids_equal_pair_tokenization_of_transformers(server, oracle):
    # transformers takes an empty second text for none at all, and cuts no query.
    pairs = [pair for pair in HARD + PAIRS[::4] if pair[1] and len(oracle(pair[0])["input_ids"]) < 384][:64]
    expected = [oracle(*pair, truncation="only_second", max_length=512)["input_ids"] for pair in pairs]
    assert ids_of(raw.tokenize(server.grpc_url, pairs)) == expected


@pytest.mark.parametrize("max_length", [63, 64, 511])  # the odd token of the room belongs to the longer text
def test_the_longer_text_is_cut_first_if_asked_as_in_transformers(server, oracle, max_length):
    texts = ["a " * length for length in [1, 29, 30, 31, 40, 255, 300, 700]]  # beyond what is encoded at first, too
    # transformers keeps every combination of the parts that it cuts off: gigabytes for two long texts.
    pairs = [pair for pair in HARD if pair[1] and len(pair[0]) + len(pair[1]) < 3_000]
    pairs += [(query, document) for query in texts[-5:] for document in texts]
    answer = raw.tokenize(server.grpc_url, pairs, max_length=max_length, query_max_length=0)
    for ids, pair in zip(ids_of(answer), pairs, strict=True):
        assert ids == oracle(*pair, truncation="longest_first", max_length=max_length)["input_ids"], pair
    whole = [len(oracle(*pair)["input_ids"]) for pair in pairs]
    assert answer["truncated"][:, 0].tolist() == [length > max_length for length in whole]


def test_num_tokens_and_truncated(server, oracle):
    answer = raw.tokenize(server.grpc_url, HARD)
    for row, (query, document) in enumerate(HARD):
        whole = len(reference(oracle, query, document, 1_000_000))
        assert answer["num_tokens"][row, 0] == len(reference(oracle, query, document))
        assert answer["truncated"][row, 0] == (whole > answer["num_tokens"][row, 0])


def test_a_long_query_is_cut_and_flagged_though_its_document_fits(server):
    answer = raw.tokenize(server.grpc_url, [(SENTENCE * 60, "short")])
    assert answer["truncated"].all()
    assert answer["num_tokens"][0, 0] < 400


@pytest.mark.parametrize(("words", "bucket"), [(1, 16), (20, 32), (60, 80), (115, 128), (125, 160), (500, 512)])
def test_padding_reaches_the_smallest_bucket(server, oracle, words, bucket):
    answer = raw.tokenize(server.grpc_url, [("a", "and " * words), ("a", "b")])
    assert answer["input_ids"].shape == (2, bucket)
    padding = answer["attention_mask"] == 0
    assert (answer["input_ids"][padding] == oracle.pad_token_id).all()


def test_model_info_is_the_manifest_and_the_limits(server, demo_repository):
    tensors = {"query": raw.column(["q"]), "document": raw.column(["d"])}
    answer = raw.infer(server.grpc_url, "tokenizer", ["model_info"], **tensors)
    facts = json.loads(answer["model_info"][0, 0])
    manifest = json.loads((demo_repository / "cross_encoder/1/manifest.json").read_text())
    assert manifest.items() <= facts.items()
    assert facts["buckets"][-1] == facts["max_length"] == 512
    assert facts["default_max_length"] == 512


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_length": 513}, "max_length must be 6 to 512 tokens for this checkpoint, got 513"),
        ({"max_length": 5}, "max_length must be 6 to 512"),
        ({"max_length": "many"}, "max_length must be a whole number of tokens, got 'many'"),
        ({"max_length": True}, "max_length must be a whole number of tokens, got True"),
        ({"max_length": 64, "query_max_length": 60}, "query_max_length must be 1 to 59 tokens"),
        ({"query_max_length": -1}, "query_max_length must be 1 to 507 tokens"),
    ],
)
def test_limits_out_of_range_are_refused(server, parameters, message):
    with pytest.raises(InferenceServerException, match=message) as caught:
        raw.tokenize(server.grpc_url, [("q", "d")], **parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_smallest_max_length_still_holds_both_texts(server):
    answer = raw.tokenize(server.grpc_url, [("a long query of many words", "and a document")], max_length=6)
    assert answer["num_tokens"][0, 0] == 6
    assert np.all(answer["truncated"])
