"""Bodies that a stranger may send: nearly right ones of every dialect, and noise."""

import gzip
import json

from hypothesis import strategies as st

PATHS = st.sampled_from(
    [
        "/rerank",
        "/v1/rerank",
        "/v1/ranking",
        "/infinity/rerank",
        "/voyage/v1/rerank",
        "/invocations",
        "/score",
    ]
)
KEYS = (
    "query",
    "documents",
    "texts",
    "passages",
    "model",
    "top_n",
    "top_k",
    "return_documents",
    "return_text",
    "raw_scores",
    "rank_fields",
    "truncate",
    "truncation",
    "priority",
    "max_tokens_per_doc",
    "max_chunks_per_doc",
    "text_1",
    "text_2",
    "queries",
    "data_1",
    "data_2",
    "use_activation",
    "kwargs",
)

texts = st.one_of(st.text(max_size=20), st.sampled_from(["", " ", "q", "1", "\x00", "\u202e", "流感", "a" * 5000]))
numbers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308]),
    st.floats(allow_nan=True, allow_infinity=True),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
documents = st.one_of(texts, st.dictionaries(st.sampled_from(["text", "title", "id"]), scalars, max_size=3))
likely = st.fixed_dictionaries(
    {"query": st.one_of(texts, st.fixed_dictionaries({"text": texts}))},
    optional={
        "documents": st.lists(documents, max_size=6),
        "texts": st.lists(texts, max_size=6),
        "passages": st.lists(documents, max_size=6),
        "top_n": st.one_of(st.none(), st.integers(-1, 9), st.just("2")),
        "top_k": st.one_of(st.none(), st.integers(-1, 9)),
        "return_documents": st.one_of(st.none(), st.booleans(), st.just("true")),
        "raw_scores": st.booleans(),
        "rank_fields": st.lists(st.sampled_from(["text", "title", "x"]), max_size=2),
        "priority": st.integers(-2, 9),
        "text_1": st.one_of(texts, st.lists(texts, max_size=3)),
        "text_2": st.one_of(texts, st.lists(texts, max_size=3)),
    },
)
objects = st.one_of(
    likely,
    st.dictionaries(st.sampled_from(KEYS), values, max_size=6),
    st.builds(lambda body, more: {**body, **more}, likely, st.dictionaries(st.sampled_from(KEYS), values, max_size=2)),
    values,
)


def _twice(body):
    """The object's keys, each twice, first with null."""
    if not isinstance(body, dict) or not body:
        return json.dumps(body).encode()
    pairs = [f"{json.dumps(key)}:null,{json.dumps(key)}:{json.dumps(value)}" for key, value in body.items()]
    return ("{" + ",".join(pairs) + "}").encode()


def _cut(data, at):
    return data[: int(len(data) * at)]


encoded = objects.map(lambda body: json.dumps(body).encode())
BODIES = st.one_of(
    encoded,
    encoded,
    objects.map(lambda body: json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    objects.map(_twice),
    st.builds(_cut, encoded, st.floats(0, 1)),
    encoded.map(lambda data: data.replace(b"q", b"\xff")),
    encoded.map(lambda data: data.decode().encode("utf-16")),
    encoded.map(gzip.compress),
    st.binary(max_size=60),
    st.builds(
        lambda depth, opening, key: b'{"query":"q","documents":["a",{"' + key + b'":' + opening * depth,
        st.integers(1, 3000),
        st.sampled_from([b"[", b'{"a":', b'{"text":']),
        st.sampled_from([b"text", b"x"]),
    ),
    st.integers(1, 1100).map(
        lambda depth: b'{"query":"q","return_documents":true,"documents":[{"x":' + b"[" * depth + b"]" * depth + b"}]}"
    ),
)
