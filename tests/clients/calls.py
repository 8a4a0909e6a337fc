"""Calls of real clients, each as its documentation says. Runs in the environment that holds the client, not in pytest.

`python calls.py GROUP URL KEY < documents.json` makes the calls of a group and prints, for each, a line with its name
and what the client returned: [[index, score], ...], or "refused" for an error that was provoked. A client that raises
gets a line with its traceback.
"""

import asyncio
import json
import os
import sys
import traceback

os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", HAYSTACK_TELEMETRY_ENABLED="False", DO_NOT_TRACK="1")

GROUP, URL, KEY = sys.argv[1:4]
GIVEN = json.load(sys.stdin)
QUERY, DOCUMENTS = GIVEN["query"], GIVEN["documents"]
TOP = 2


def _pairs(results):
    return [[result.index, result.relevance_score] for result in results]


def _of_texts(documents, text, score):
    """Results that hold documents, not their indices."""
    return [[DOCUMENTS.index(text(document)), score(document)] for document in documents]


# --- cohere ---


def cohere_v2():
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=URL)
    return _pairs(client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=TOP).results)


def cohere_v2_limits():
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=URL)
    answer = client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=TOP, max_tokens_per_doc=4096)
    assert answer.id
    assert answer.meta.billed_units.search_units == 1
    return _pairs(answer.results)


def cohere_v2_async():
    import cohere

    client = cohere.AsyncClientV2(api_key=KEY, base_url=URL)
    return _pairs(asyncio.run(client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=TOP)).results)


def cohere_v1_objects():
    import cohere

    client = cohere.Client(api_key=KEY, base_url=URL)
    documents = [{"text": text} for text in DOCUMENTS]
    results = client.rerank(model="m", query=QUERY, documents=documents, top_n=TOP, return_documents=True).results
    assert [result.document.text for result in results] == [DOCUMENTS[result.index] for result in results]
    return _pairs(results)


def cohere_base_url_with_v1():
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=f"{URL}/v1")
    return _pairs(client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=TOP).results)


def cohere_wrong_key():
    import cohere

    client = cohere.Client(api_key="wrong", base_url=URL)
    try:
        client.rerank(model="m", query=QUERY, documents=DOCUMENTS)
    except cohere.core.ApiError as error:
        assert error.status_code == 401, error
        assert "API key" in str(error.body)
        return "refused"


def langchain_cohere():
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    reranker = CohereRerank(base_url=URL, cohere_api_key=KEY, model="m", top_n=TOP)
    documents = reranker.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    return _of_texts(documents, lambda d: d.page_content, lambda d: d.metadata["relevance_score"])


# --- Voyage, OpenAI, NVIDIA ---


def voyageai_():
    import voyageai

    client = voyageai.Client(api_key=KEY, base_url=f"{URL}/v1")
    answer = client.rerank(QUERY, DOCUMENTS, model="m", top_k=TOP)
    assert answer.total_tokens == GIVEN["tokens"]
    return _pairs(answer.results)


def voyageai_async_all():
    import voyageai

    client = voyageai.AsyncClient(api_key=KEY, base_url=f"{URL}/v1")
    return _pairs(asyncio.run(client.rerank(QUERY, DOCUMENTS, model="m")).results)[:TOP]


def voyageai_bad_request():
    """An error of the gateway is an error of the client, with the gateway's words."""
    import voyageai

    client = voyageai.Client(api_key=KEY, base_url=f"{URL}/v1")
    try:
        client.rerank(QUERY, DOCUMENTS * 2000, model="m")
    except voyageai.error.InvalidRequestError as error:
        assert "the limit is 1,000" in str(error)
        return "refused"


def langchain_voyageai():
    from langchain_core.documents import Document
    from langchain_voyageai import VoyageAIRerank

    reranker = VoyageAIRerank(api_key=KEY, base_url=f"{URL}/v1", model="m", top_k=TOP)
    documents = reranker.compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    return _of_texts(documents, lambda d: d.page_content, lambda d: d.metadata["relevance_score"])


def openai_():
    from openai import OpenAI

    client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    assert "reranker" in [model.id for model in client.models.list().data]
    body = {"model": "m", "query": QUERY, "documents": DOCUMENTS, "top_n": TOP}
    answer = client.post("/rerank", body=body, cast_to=object)
    return [[result["index"], result["relevance_score"]] for result in answer["results"]]


def openai_error():
    import openai

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    try:
        client.post("/rerank", body={"query": QUERY, "documents": []}, cast_to=object)
    except openai.BadRequestError as error:
        assert error.body["message"] == "documents is empty"
        assert (error.type, error.param) == ("invalid_request_error", "documents")
        return "refused"


def langchain_nvidia():
    from langchain_core.documents import Document
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    reranker = NVIDIARerank(base_url=f"{URL}/v1", api_key=KEY, top_n=TOP, usage_telemetry_enabled=False)
    documents = reranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    return _of_texts(documents, lambda d: d.page_content, lambda d: ["logit", d.metadata["relevance_score"]])


# --- infinity, Xinference ---


def infinity_client():
    from infinity_client import Client
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    client = Client(base_url=URL, headers={"Authorization": f"Bearer {KEY}"})
    answer = rerank.sync(client=client, body=RerankInput(query=QUERY, documents=DOCUMENTS, model="m"))
    assert answer.usage.total_tokens == GIVEN["tokens"]
    return _pairs(answer.results)[:TOP]


def langchain_infinity():
    from infinity_client import Client
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank
    from langchain_core.documents import Document

    client = Client(base_url=URL, headers={"Authorization": f"Bearer {KEY}"})
    documents = [Document(page_content=text) for text in DOCUMENTS]
    found = InfinityRerank(client=client, model="m", top_n=TOP).compress_documents(documents, QUERY)
    return _of_texts(found, lambda d: d.page_content, lambda d: d.metadata["relevance_score"])


def langchain_jina():
    from langchain_community.document_compressors import jina_rerank
    from langchain_core.documents import Document

    jina_rerank.JINA_API_URL = f"{URL}/v1/rerank"  # the address is a constant of the module
    documents = [Document(page_content=text) for text in DOCUMENTS]
    found = jina_rerank.JinaRerank(jina_api_key=KEY, model="m", top_n=TOP).compress_documents(documents, QUERY)
    return _of_texts(found, lambda d: d.page_content, lambda d: d.metadata["relevance_score"])


def xinference_client():
    from xinference_client import RESTfulClient

    model = RESTfulClient(URL, api_key=KEY).get_model("m")
    results = model.rerank(DOCUMENTS, QUERY, top_n=TOP, return_documents=True)["results"]
    assert [result["document"]["text"] for result in results] == [DOCUMENTS[result["index"]] for result in results]
    return [[result["index"], result["relevance_score"]] for result in results]


# --- LlamaIndex ---


def _llama(reranker):
    from llama_index.core import QueryBundle
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    found = reranker.postprocess_nodes(nodes, query_bundle=QueryBundle(QUERY))
    return _of_texts(found, lambda node: node.node.text, lambda node: node.score)


def llama_index_cohere():
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return _llama(CohereRerank(base_url=URL, api_key=KEY, model="m", top_n=TOP))


def llama_index_jina():
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return _llama(JinaRerank(base_url=f"{URL}/v1", api_key=KEY, model="m", top_n=TOP))


def llama_index_tei():
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return _llama(TextEmbeddingInference(base_url=URL, top_n=TOP, auth_token=f"Bearer {KEY}"))


def llama_index_nvidia():
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    found = _llama(NVIDIARerank(base_url=f"{URL}/v1", api_key=KEY, top_n=TOP))
    return [[index, ["logit", score]] for index, score in found]


# --- Haystack ---


def _haystack(ranker):
    from haystack import Document

    if hasattr(ranker, "warm_up"):
        ranker.warm_up()
    documents = ranker.run(query=QUERY, documents=[Document(content=text) for text in DOCUMENTS])["documents"]
    return _of_texts(documents, lambda d: d.content, lambda d: d.score)


def _secret():
    from haystack.utils import Secret

    return Secret.from_token(KEY)


def haystack_cohere():
    from haystack_integrations.components.rankers.cohere import CohereRanker

    return _haystack(CohereRanker(model="m", api_base_url=URL, api_key=_secret(), top_k=TOP))


def haystack_jina():
    from haystack_integrations.components.rankers.jina import JinaRanker

    return _haystack(JinaRanker(model="m", base_url=f"{URL}/v1/rerank", api_key=_secret(), top_k=TOP))


def haystack_nvidia():
    from haystack_integrations.components.rankers.nvidia import NvidiaRanker

    found = _haystack(NvidiaRanker(model=None, api_url=f"{URL}/v1", api_key=_secret(), top_k=TOP))
    return [[index, ["logit", score]] for index, score in found]


def haystack_tei():
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    return _haystack(HuggingFaceTEIRanker(url=URL, token=_secret(), top_k=TOP))


# --- LiteLLM ---


def _litellm(provider, base, **more):
    import litellm

    answer = litellm.rerank(
        model=f"{provider}/m", query=QUERY, documents=DOCUMENTS, top_n=TOP, api_base=base, api_key=KEY, **more
    )
    nim = provider.startswith("nvidia_nim")
    return [[r["index"], ["logit", r["relevance_score"]] if nim else r["relevance_score"]] for r in answer.results]


def _litellm_calls():
    bases = {
        "cohere": URL,
        "jina_ai": URL,
        "hosted_vllm": URL,
        "huggingface": URL,
        "together_ai": f"{URL}/v1",
        "voyage": f"{URL}/voyage",
        "infinity": f"{URL}/infinity",
        "nvidia_nim": URL,
        "nvidia_nim/ranking": URL,
        "litellm_proxy": URL,
    }
    calls = {f"litellm {name}": (lambda n=name, b=base: _litellm(n, b)) for name, base in bases.items()}
    calls["litellm hosted_vllm, base ends in /v1"] = lambda: _litellm("hosted_vllm", f"{URL}/v1")
    calls["litellm cohere, max_chunks_per_doc"] = lambda: _litellm("cohere", URL, max_chunks_per_doc=3)
    calls["litellm infinity without the prefix"] = lambda: _litellm("infinity", URL, return_documents=False)
    calls["litellm bad request"] = _litellm_refused
    return calls


def _litellm_refused():
    import litellm

    try:
        litellm.rerank(model="cohere/m", query=QUERY, documents=[], api_base=URL, api_key=KEY)
    except litellm.BadRequestError as error:
        assert "documents is empty" in str(error)
        return "refused"


_COHERE = (cohere_v2, cohere_v2_limits, cohere_v2_async, cohere_v1_objects, cohere_base_url_with_v1, cohere_wrong_key)
_VOYAGE = (voyageai_, voyageai_async_all, voyageai_bad_request)
_OTHERS = (*_VOYAGE, openai_, openai_error, infinity_client, xinference_client)
_LANGCHAIN = (langchain_cohere, langchain_voyageai, langchain_nvidia, langchain_infinity, langchain_jina)
_LLAMA_INDEX = (llama_index_cohere, llama_index_jina, llama_index_tei, llama_index_nvidia)
_HAYSTACK = (haystack_cohere, haystack_jina, haystack_nvidia, haystack_tei)


def _named(*functions):
    return {function.__name__.strip("_").replace("_", " "): function for function in functions}


GROUPS = {
    "cohere5.5": lambda: _named(cohere_v1_objects, cohere_wrong_key),
    "cohere": lambda: _named(*_COHERE),
    "sdks": lambda: _named(*_COHERE, *_OTHERS),
    "langchain": lambda: _named(*_LANGCHAIN),
    "llama-index": lambda: _named(*_LLAMA_INDEX),
    "haystack": lambda: _named(*_HAYSTACK),
    "litellm": _litellm_calls,
}

if __name__ == "__main__":
    for name, call in GROUPS[GROUP]().items():
        try:
            line = {"name": name, "found": call()}
        except Exception:
            line = {"name": name, "error": traceback.format_exc()}
        print("RESULT", json.dumps(line), flush=True)
