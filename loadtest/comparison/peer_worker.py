"""Worker of one peer, in its own environment: searches as JSON lines on stdin, logits and seconds on stdout.

    python peer_worker.py PEER CHECKPOINT FOLDER

Imports nothing of this project, which is not installed in that environment. Each peer is called as its documentation
shows. A peer that is not thread-safe gets one call at a time, as in a web service around it. FOLDER stores the peer's
conversion of the checkpoint.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

MAX_LENGTH = 512

Score = Callable[[str, Sequence[str]], Sequence[float]]


def main() -> None:
    """Load the peer, write its versions, then answer each line of stdin."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the libraries print to stdout; send that to stderr
    name, checkpoint, folder = sys.argv[1:]
    load, packages = LOADERS[name]
    with contextlib.ExitStack() as stack:
        score = load(checkpoint, Path(folder), stack)
        replies.write(json.dumps({"versions": {package: version(package) for package in packages}}) + "\n")
        for line in sys.stdin:
            job = json.loads(line)
            seconds, logits = run_calls(score, job["searches"], job["callers"])
            replies.write(json.dumps({"seconds": seconds, "logits": logits}) + "\n")


def run_calls(score: Score, searches: Sequence[Sequence[Any]], callers: int) -> tuple[float, list[list[float]]]:
    """Score all (query, documents) of `searches` with `callers` threads; return the seconds and the logits."""

    def call(search: Sequence[Any]) -> list[float]:
        return [float(logit) for logit in score(*search)]

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: time.sleep(0.01), range(callers)))  # start the threads before the clock
        start = time.perf_counter()
        logits = list(pool.map(call, searches))
        return time.perf_counter() - start, logits


def in_turn(score: Score) -> Score:
    """Serialize the calls."""
    lock = threading.Lock()

    def locked(query: str, documents: Sequence[str]) -> Sequence[float]:
        with lock:
            return score(query, documents)

    return locked


def sentence_transformers(**options: Any) -> Callable[[str, Path, contextlib.ExitStack], Score]:  # noqa: ANN401
    """CrossEncoder with these arguments. A backend's conversion takes minutes and is stored."""

    def load(checkpoint: str, folder: Path, _: contextlib.ExitStack) -> Score:
        from sentence_transformers import CrossEncoder
        from torch.nn import Identity

        common = {"device": "cpu", "max_length": MAX_LENGTH, "local_files_only": True}
        if backend := options.get("backend"):
            converted = folder / backend
            if not converted.exists():
                partial = folder / f"{backend}.tmp"
                shutil.rmtree(partial, ignore_errors=True)
                CrossEncoder(checkpoint, **common, **options).save_pretrained(str(partial))
                partial.rename(converted)
            checkpoint = str(converted)
        model = CrossEncoder(checkpoint, **common, **options)

        def score(query: str, documents: Sequence[str]) -> Sequence[float]:
            pairs = [(query, document) for document in documents]
            return model.predict(pairs, activation_fn=Identity(), show_progress_bar=False)

        return in_turn(score)

    return load


def flag_embedding(checkpoint: str, _folder: Path, _stack: contextlib.ExitStack) -> Score:
    """FlagReranker, the code of the checkpoint's authors; fp16 is for GPUs."""
    from FlagEmbedding import FlagReranker

    model = FlagReranker(checkpoint, use_fp16=False, devices="cpu", batch_size=16, max_length=MAX_LENGTH)

    def score(query: str, documents: Sequence[str]) -> Sequence[float]:
        return model.compute_score([(query, document) for document in documents])

    return in_turn(score)


def infinity(checkpoint: str, _folder: Path, stack: contextlib.ExitStack) -> Score:
    """AsyncEmbeddingEngine, which batches concurrent calls itself."""
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    arguments = EngineArgs(model_name_or_path=checkpoint, engine="torch", device="cpu", model_warmup=False)
    engine = AsyncEmbeddingEngine.from_args(arguments)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(engine.astart(), loop).result()
    stack.callback(lambda: asyncio.run_coroutine_threadsafe(engine.astop(), loop).result())

    def score(query: str, documents: Sequence[str]) -> Sequence[float]:
        work = engine.rerank(query=query, docs=list(documents), raw_scores=True)
        results, _ = asyncio.run_coroutine_threadsafe(work, loop).result()
        logits = [0.0] * len(documents)
        for result in results:
            logits[result.index] = result.relevance_score
        return logits

    return score


LOADERS = {
    "st-torch-fp32": (sentence_transformers(), ("sentence-transformers", "transformers", "torch")),
    "st-torch-bf16": (
        sentence_transformers(model_kwargs={"dtype": "bfloat16"}),
        ("sentence-transformers", "transformers", "torch"),
    ),
    "st-onnx": (sentence_transformers(backend="onnx"), ("sentence-transformers", "onnxruntime")),
    "st-openvino": (sentence_transformers(backend="openvino"), ("sentence-transformers", "openvino")),
    "flagembedding": (flag_embedding, ("FlagEmbedding", "transformers", "torch")),
    "infinity": (infinity, ("infinity-emb", "transformers", "torch")),
}

if __name__ == "__main__":
    main()
