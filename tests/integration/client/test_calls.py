"""Both clients against the real server."""

import threading

import pytest

import triton_rerank as tr

pytestmark = pytest.mark.integration

MIXED = [
    "short",
    "",
    "   ",
    "nul \0 inside",
    "正则化技术详解：Dropout 与 BatchNorm 的作用机制",
    "word " * 300,
    "تعتبر القراءة من أهم الوسائل " * 10,
    "👩‍🚀🚀",
    "</s></s> special <mask>",
]


@pytest.fixture
def client(client_class, server):
    with client_class(server.grpc_url, timeout=120) as made:
        yield made


def logits(response):
    return {result.index: result.logit for result in response}


def test_the_relevant_document_comes_first_across_languages(client):
    documents = [
        "The stock market fell sharply on Monday.",
        "Wearing masks and washing hands frequently can help prevent influenza.",
        "How to bake sourdough bread at home.",
    ]
    response = client.rerank("如何预防流感？", documents)
    assert response[0].index == 1
    assert response[0].document is documents[1]
    assert 0 < response[2].relevance_score < response[0].relevance_score < 1
    assert response.usage.num_tokens == sum(result.num_tokens for result in response)


def test_scores_do_not_depend_on_how_a_list_is_cut(client_class, server):
    documents = [MIXED[number % len(MIXED)] + str(number) for number in range(100)]
    found = []
    for pairs_per_request in (5, 32, 128):
        with client_class(server.grpc_url, pairs_per_request=pairs_per_request, timeout=120) as client:
            found.append(logits(client.rerank("short words", documents)))
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=0.05)  # bf16 rounds with the shape of a batch


def test_odd_documents_are_scored(client):
    response = client.rerank("q", MIXED)
    assert sorted(result.index for result in response) == list(range(len(MIXED)))
    assert not any(result.truncated for result in response)


def test_a_nul_is_text_like_any_other(client):
    with_nul = client.rerank("q \0 r", ["a \0 b", "a b"])
    assert len(with_nul) == 2


def test_long_texts_are_truncated_and_flagged(client):
    response = client.rerank("q", ["word " * 100_000, "x" * 10_000_000, "short"])
    flags = {result.index: (result.truncated, result.num_tokens) for result in response}
    assert flags[0] == (True, 512)
    assert flags[1] == (True, 512)
    assert flags[2][0] is False
    assert response.usage.num_truncated == 2


def test_a_long_query_is_cut_and_flagged(client):
    (result,) = client.rerank("query " * 5000, ["short"])
    assert result.truncated
    assert result.num_tokens < 512


def test_max_length_limits_the_tokens(client):
    (result,) = client.rerank("q", ["word " * 300], max_length=64)
    assert (result.num_tokens, result.truncated) == (64, True)


@pytest.mark.parametrize("options", [{"max_length": 1}, {"max_length": 100_000}, {"query_max_length": 100_000}])
def test_lengths_beyond_the_servers_limits_are_refused_with_the_limits(client, options):
    with pytest.raises(tr.InvalidRequestError, match=rf"must be \d+ to \d+ tokens.*got {next(iter(options.values()))}"):
        client.rerank("q", ["a"], **options)
    assert client.is_ready()


def test_a_needle_in_a_long_document_is_found_in_chunks(client):
    straw = "The committee discussed the budget of the local library. " * 120
    needle = "To prevent influenza, wash your hands often and get vaccinated. "
    documents = [straw + needle + straw, straw]
    query = "How can influenza be prevented?"
    whole = {result.index: result for result in client.rerank(query, documents)}
    parts = client.rerank(query, documents, long_documents="chunk")
    assert whole[0].truncated
    assert parts[0].index == 0
    assert needle.strip() in parts[0].chunk.text
    assert parts[0].logit > whole[0].logit
    assert not parts[0].truncated
    assert documents[0][parts[0].chunk.start : parts[0].chunk.end] == parts[0].chunk.text


@pytest.mark.parametrize("text", ["自然语言处理是人工智能的重要方向。", "ภาษาไทยเป็นภาษาที่มีระดับเสียง", "слово за словом "])
def test_chunks_leave_no_token_unread_in_any_script(client, text):
    (result,) = client.rerank("q", [text * 200], long_documents="chunk")
    assert not result.truncated
    assert result.chunk.count > 1


def test_structured_documents(client):
    products = [
        {"title": "Laufschuhe", "description": "Leichte Schuhe für lange Strecken", "price": 89.0},
        {"title": "Kaffeemaschine", "description": "Brüht zehn Tassen", "price": 45.5},
    ]
    for text_from in ("{title}: {description} ({price:.2f} EUR)", ["title", "description"]):
        response = client.rerank("shoes for running", products, text_from=text_from)
        assert response[0].document is products[0]
    assert response[0].text == "Laufschuhe\nLeichte Schuhe für lange Strecken"


def test_score_keeps_order_and_agrees_with_rerank(client):
    documents = ["Wash your hands.", "Buy stocks.", "Get a flu shot."]
    scores = client.score([("prevent influenza", document) for document in documents], normalize=False)
    assert logits(client.rerank("prevent influenza", documents)) == pytest.approx(dict(enumerate(scores)), abs=0.05)


def test_different_queries_in_one_call(client):
    pairs = [("influenza", "Flu is a disease."), ("stock market", "Flu is a disease.")] * 40
    scores = client.score(pairs)
    assert scores[0] > scores[1]
    assert scores[0::2] == pytest.approx([scores[0]] * 40, abs=0.02)


def test_model_info(client):
    info = client.model_info()
    assert info.checkpoint == "demo"
    assert info.precision == "fp32"
    assert info.max_length == 512
    assert info.default_max_length == 512
    assert info.max_batch_size == 128
    assert info.max_queue_size is None  # rerank_openvino counts seconds of work
    assert info.priority_levels == 3
    assert info.manifest["parity"]["tolerance"] > 0


def test_readiness(client, client_class, server):
    assert client.is_ready()
    with client_class(server.grpc_url, "nothing") as other:
        assert not other.is_ready()
        with pytest.raises(tr.ModelNotFoundError, match="unknown model: 'nothing'"):
            other.rerank("q", ["a"])


@pytest.mark.parametrize("model", ["tokenizer", "cross_encoder"])
def test_a_model_that_is_no_reranker_is_refused(client_class, server, model):
    with client_class(server.grpc_url, model) as client, pytest.raises(tr.InvalidRequestError):
        client.rerank("q", ["a"])


def test_a_deadline_passes_and_the_server_lives(client):
    with pytest.raises(tr.RequestTimeoutError, match="requests were answered within the timeout"):
        client.rerank("q", ["word " * 300] * 50, timeout=0.05)
    assert client.is_ready()


def test_more_than_a_thousand_documents_in_one_call(client):
    response = client.rerank("q", [str(number) for number in range(1_100)], max_length=16)
    assert sorted(result.index for result in response) == list(range(1_100))


def test_32_threads_share_a_client(server):
    queries = [f"query number {number}" for number in range(8)]
    documents = [f"document {number} " * (number % 7 + 1) for number in range(8)]
    wrong = []
    with tr.RerankClient(server.grpc_url, timeout=120) as client:
        expected = {query: logits(client.rerank(query, documents)) for query in queries}

        def work(number):
            for turn in range(3):
                query = queries[(number + turn) % len(queries)]
                if logits(client.rerank(query, documents)) != pytest.approx(expected[query], abs=0.05):
                    wrong.append(query)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
