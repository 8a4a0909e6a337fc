"""Search service: BM25 finds 100 candidates, the reranker puts them in order.

pip install "./client[eval]" fastapi uvicorn
uvicorn --app-dir examples search_api:app --port 8088
curl -s "localhost:8088/search?query=how+do+I+adjust+my+backpack&top_n=3"
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query

from triton_rerank import AsyncRerankClient, RequestTimeoutError, ServerUnavailableError
from triton_rerank.evaluation import Bm25, ranked

CORPUS = Path(os.environ.get("CORPUS", "examples/shop/corpus.jsonl"))
CANDIDATES = 100
TEXT = "{title} {text}"

articles = {row["_id"]: row for row in map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines())}
first_stage = Bm25({number: TEXT.format_map(article) for number, article in articles.items()})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client for the life of the service; it holds the connections."""
    async with AsyncRerankClient(timeout=2.0) as app.state.reranker:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/search")
async def search(
    query: Annotated[str, Query(min_length=1, max_length=1000, pattern=r"\S")],
    top_n: Annotated[int, Query(ge=1, le=CANDIDATES)] = 10,
) -> dict[str, Any]:
    """The best `top_n` articles. If the reranker does not answer in time, the first stage's order is the answer."""
    candidates = [articles[number] for number in ranked(first_stage.search(query, CANDIDATES))]
    try:
        response = await app.state.reranker.rerank(query, candidates, text_from=TEXT, top_n=top_n)
    except (ServerUnavailableError, RequestTimeoutError):
        hits = [{"article": article, "score": None} for article in candidates[:top_n]]
        return {"reranked": False, "hits": hits}
    hits = [{"article": result.document, "score": result.relevance_score} for result in response]
    return {"reranked": True, "hits": hits}
