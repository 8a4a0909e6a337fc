"""RAG with LangGraph: retrieve, rerank, then answer, or say that no document answers the question.

pip install "./client[eval,langchain]" langgraph
python examples/langgraph_rag.py "How do I adjust my backpack?"
"""

import json
import os
import sys
from pathlib import Path
from typing import TypedDict

from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langgraph.graph import END, START, StateGraph

from triton_rerank.evaluation import Bm25, ranked
from triton_rerank.langchain import TritonRerank

CORPUS = Path(__file__).with_name("shop") / "corpus.jsonl"
articles = {row["_id"]: row for row in map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines())}
first_stage = Bm25({number: f"{article['title']} {article['text']}" for number, article in articles.items()})
reranker = TritonRerank(
    url=os.environ.get("TRITON_RERANK_URL", "localhost:8001"),
    text_from="{title} {text}",
    top_n=2,
    min_relevance_score=0.6,  # of your own: `triton-rerank eval` proposes one
)
model = ParrotFakeChatModel()  # repeats its prompt; your language model here


class State(TypedDict, total=False):
    """What the nodes hand on."""

    question: str
    documents: list[Document]
    answer: str


def retrieve(state: State) -> State:
    """First stage: up to 100 candidates."""
    found = [articles[number] for number in ranked(first_stage.search(state["question"], 100))]
    return {"documents": [Document(article["text"], metadata={"title": article["title"]}) for article in found]}


def rerank(state: State) -> State:
    """Second stage: those of at least the minimum score, at most two."""
    return {"documents": list(reranker.compress_documents(state["documents"], state["question"]))}


def answer(state: State) -> State:
    """The language model reads what is left."""
    context = "\n".join(document.page_content for document in state["documents"])
    prompt = f"Answer from this text:\n{context}\nQuestion: {state['question']}"
    return {"answer": str(model.invoke(prompt).content)}


def refuse(state: State) -> State:
    """Without a good document, a language model would invent an answer."""
    return {"answer": f"No article answers this: {state['question']}"}


graph = StateGraph(State)
for node in (retrieve, rerank, answer, refuse):
    graph.add_node(node.__name__, node)
graph.add_edge(START, "retrieve")
graph.add_edge("retrieve", "rerank")
graph.add_conditional_edges("rerank", lambda state: "answer" if state["documents"] else "refuse", ["answer", "refuse"])
graph.add_edge("answer", END)
graph.add_edge("refuse", END)
rag = graph.compile()

if __name__ == "__main__":
    try:
        print(rag.invoke({"question": " ".join(sys.argv[1:]) or "How do I adjust my backpack?"})["answer"])
    finally:
        reranker.close()
