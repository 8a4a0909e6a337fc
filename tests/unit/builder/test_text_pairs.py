"""What the tokenizer models encode of a batch, without Triton: their module text_pairs with a real tokenizer."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

from support import ROOT
from support.tiny_models import tiny_tokenizer

LONG = 2_000_000  # characters: more than are encoded between two looks at the clock


@pytest.fixture
def text_pairs(monkeypatch):
    """The module, which imports Triton's own; nothing here calls that."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    path = ROOT / "model_repository/tokenizer/1/text_pairs.py"
    spec = importlib.util.spec_from_file_location("text_pairs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """A tokenizer that keeps the first letters of what it encodes."""

    def __init__(self):
        self._tokenizer, self.seen = tiny_tokenizer("bert"), set()

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts, **options):
        self.seen |= {text[:1] for text in texts}
        return self._tokenizer.encode_batch_fast(texts, **options)


def requests_of(letters, expired):
    """One request for each letter, of one short query and two documents, the second a long one."""
    for letter in letters:
        documents = [f"{letter.upper()} short", letter * LONG]
        yield SimpleNamespace(
            queries={letter.encode(): f"{letter}?"}, documents=documents, max_length=8, expired=letter in expired
        )


def test_texts_of_expired_requests_are_not_encoded(text_pairs):
    tokenizer = Recorder()
    encoder = text_pairs.TextEncoder(tokenizer)
    for (queries, documents), letter in zip(
        encoder.encode_requests(list(requests_of("xyz", expired="y")), 8), "xyz", strict=True
    ):
        assert [bool(ids) for ids, _ in documents] == [letter != "y"] * 2
        assert bool(queries[letter.encode()][0]) == (letter != "y")
    assert not tokenizer.seen & {"y", "Y"}


def test_a_request_that_expires_while_its_texts_are_encoded_loses_the_rest(text_pairs):
    tokenizer = Recorder()
    encoder = text_pairs.TextEncoder(tokenizer)

    class Expiring(SimpleNamespace):
        @property
        def expired(self):
            return "b" in tokenizer.seen

    documents = [letter * LONG for letter in "abcd"]
    batch = [Expiring(queries={b"q": "q"}, documents=documents, max_length=8)]
    ((_, encoded),) = encoder.encode_requests(batch, 8)
    assert [bool(ids) for ids, _ in encoded] == [True, True, False, False]
    assert not tokenizer.seen & {"c", "d"}


def test_a_query_is_encoded_if_one_of_its_requests_is_awaited(text_pairs):
    encoder = text_pairs.TextEncoder(Recorder())
    gone, waiting = requests_of("xx", expired="")
    gone.expired = True
    (_, dropped), (queries, encoded) = encoder.encode_requests([gone, waiting], 8)
    assert queries[b"x"][0]
    assert [bool(ids) for ids, _ in dropped + encoded] == [False, False, True, True]
