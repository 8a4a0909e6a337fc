"""A LlamaIndex query engine: a vector index finds 20 nodes, the reranker keeps 2, a language model answers.

pip install "./client[llama-index]" scikit-learn
python examples/llama_index_engine.py "Why is my stove weak in the cold?"
"""

import json
import os
import sys
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import BaseQueryEngine
from llama_index.core.schema import TextNode
from sklearn.feature_extraction.text import HashingVectorizer

from triton_rerank.llama_index import TritonRerank

CORPUS = Path(__file__).with_name("shop") / "corpus.jsonl"
VECTORIZER = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 3), n_features=1024, alternate_sign=False)


class CharacterEmbedding(BaseEmbedding):
    """Counts of character n-grams, so that the example runs without a download. Your embedding model here."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return VECTORIZER.transform([text]).toarray()[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def make_engine(reranker: TritonRerank) -> BaseQueryEngine:
    """An engine over the articles of the shop."""
    articles = map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines())
    nodes = [TextNode(id_=article["_id"], text=f"{article['title']}. {article['text']}") for article in articles]
    index = VectorStoreIndex(nodes, embed_model=CharacterEmbedding())
    # MockLLM repeats its prompt; your language model here.
    return index.as_query_engine(similarity_top_k=20, node_postprocessors=[reranker], llm=MockLLM())


if __name__ == "__main__":
    question = " ".join(sys.argv[1:]) or "Why is my stove weak in the cold?"
    reranker = TritonRerank(url=os.environ.get("TRITON_RERANK_URL", "localhost:8001"), top_n=2)
    try:
        response = make_engine(reranker).query(question)
    finally:
        reranker.close()
    for node in response.source_nodes:
        print(f"{node.score:.2f} {node.node_id} {node.text}")
