"""Scorer of late interaction: (query, document) pairs of text -> logits, with a cache of the texts' vectors.

Runs inside Triton's Python stub, with the other files of its folder; `export` copies two of them there: text_pairs.py
of the model `tokenizer`, and micro_batch_cuts.py of the backend `rerank_openvino`. Needs only `numpy` and `tokenizers`.

The logit is the mean, over the query's scored vectors, of the largest dot product with one of the document's scored
vectors, times `logit_scale`. `late_encoder` computes the vectors, once for each text: the cache keeps them, as
`vector_type`, under a digest of the text and its token limit, up to `cache_bytes`. New vectors are rounded to that type
before they are scored, so a score does not depend on whether its vectors were cached.

A request whose texts are all cached is answered at once, without tokenizing them. The others wait for a worker: one
encodes for requests that lack only queries, the other for those that lack documents.
"""

import contextlib
import hashlib
import json
import threading
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from cache_metrics import CacheMetrics
from calls import Call, Lane
from encoding import EncoderError, VectorEncoder
from max_sim import mean_best_cosines
from snapshot import Snapshot, SnapshotKeeper
from text_pairs import TextEncoder, failure, read_requests
from text_rows import Limits, Side
from tokenizers import Tokenizer
from vector_cache import VectorCache


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Read the settings; the cache is empty, or is filled from its snapshot in the background."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        facts, manifest_digest = read_manifest(folder / "manifest.json")
        settings = facts["settings"]
        self.query = Side("query", settings["query"])
        self.document = Side("document", settings["document"], settings["unscored_ids"])
        self.limits = Limits(self.query, self.document, int(parameters["default_max_length"]))
        facts |= {"max_length": self.document.max_length, "default_max_length": self.limits.default_max_length}
        self.facts = facts
        tokenizer = TextEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
        self.encoder = VectorEncoder(tokenizer, settings, parameters, config["max_batch_size"])
        self.logit_scale = float(parameters["logit_scale"])
        self.cache = VectorCache(int(parameters["cache_bytes"]))
        self.metrics = CacheMetrics(args["model_name"], self.cache)
        self.keeper = None
        if path := parameters.get("cache_snapshot"):
            settings = {"manifest": manifest_digest, "vector_type": self.encoder.vector_type}
            self.keeper = self.keep_snapshot(Snapshot(folder / path, settings), parameters)
        self.start_workers()

    def keep_snapshot(self, snapshot, parameters):
        """Fill the cache from the snapshot in the background, and write the snapshot from time to time."""
        interval_s = float(parameters.get("cache_snapshot_interval_s", 600))
        log = pb_utils.Logger
        return SnapshotKeeper(snapshot, self.cache, interval_s, self.metrics, log.log_info, log.log_warn)

    def start_workers(self):
        """Start a worker for calls that lack only queries, and one for those that lack documents."""
        self.query_lane, self.document_lane = lanes = Lane(), Lane()
        self.workers = [threading.Thread(target=self.work, args=[lane], daemon=True) for lane in lanes]
        for worker in self.workers:
            worker.start()

    def execute(self, requests):
        """Answer calls whose texts are all known, and let the others wait. Never waits itself.

        A request that is invalid does not affect the others.
        """
        responses, valid = read_requests(requests, self.limits)
        for index, pairs in valid:
            call = Call(pairs, requests[index].get_response_sender(), self.query, self.document)
            with failing([call]):
                self.take(call)
        for request, response in zip(requests, responses, strict=True):
            if response is not None:
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                request.get_response_sender().send(response, flags=flags)

    def finalize(self):
        """Answer the calls that were taken, write the snapshot, and stop."""
        for lane in (self.query_lane, self.document_lane):
            lane.close()
        for worker in self.workers:
            worker.join()
        if self.keeper is not None:
            self.keeper.stop()

    def take(self, call):
        """Answer a call, or put it into the lane where it waits."""
        if call.pairs.requested == {"model_info"}:
            self.respond(call, {})
            return
        self.look_up(call)
        if call.complete:
            self.answer(call)
        elif call.found.keys() >= set(call.documents):
            self.query_lane.add(call)
        else:
            self.document_lane.add(call)

    def info(self):
        """The output `model_info`, JSON: the builder's manifest, the limits that hold here, the state of the cache."""
        return json.dumps(self.facts | {"cache": self.cache.describe()}, ensure_ascii=False).encode()

    def look_up(self, call):
        """Find texts of a call in the cache."""
        found = self.cache.get(call.keys - call.found.keys())
        call.found |= found
        self.metrics.count("hits", *(len(found.keys() & set(keys)) for keys in (call.queries, call.documents)))

    def work(self, lane):
        """Encode and answer the calls of a lane until it is closed and empty."""
        while calls := lane.take():
            with failing(calls):
                self.encode_and_answer(calls)

    def encode_and_answer(self, calls):
        """Encode what `calls` lack, and answer each of them as soon as it is complete."""
        for entries in self.encode(calls):
            for call in calls:
                call.take(entries)
                if call.complete and not call.answered:
                    self.answer(call)
        for call in calls:
            if not call.answered:  # its time is over
                self.answer(call)

    def encode(self, calls):
        """Yield what `calls` lack, {key: Encoded or EncoderError}, batch after batch, and keep it in the cache."""
        queries, documents = {}, {}
        for call in calls:
            self.look_up(call)  # another worker, or the batch before, may have encoded some by now
            for texts, missing in ((queries, call.missing_queries()), (documents, call.missing_documents())):
                for key, text in missing.items():
                    texts.setdefault(key, text).requests.append(call.pairs)
        self.metrics.count("misses", len(queries), len(documents))
        yield {}
        for entries in self.encoder.encode(queries | documents):
            evicted = self.cache.put({k: entry for k, entry in entries.items() if not isinstance(entry, EncoderError)})
            self.metrics.stored(evicted)
            yield entries

    def answer(self, call):
        """Send a call's scores, the error of one of its texts, or that its time is over."""
        if call.pairs.expired:
            self.respond(call, {})
            return
        queries, documents = ([call.found[key] for key in keys] for keys in (call.queries, call.documents))
        error = next((entry for entry in queries + documents if isinstance(entry, EncoderError)), None)
        if error is not None:
            call.send(failure(str(error), error.code))
            return
        self.respond(call, self.tensors(queries, documents))

    def respond(self, call, tensors):
        """Send those of `tensors` that the call asks for, or that its time is over."""
        info = self.info() if "model_info" in call.pairs.requested else None
        call.send(call.pairs.response(tensors, info))

    def tensors(self, queries, documents):
        """The output tensors of the pairs of `queries` and `documents`."""
        pairs = list(zip(queries, documents, strict=True))
        num_tokens = [query.num_tokens + document.num_tokens for query, document in pairs]
        truncated = [query.truncated or document.truncated for query, document in pairs]
        return {
            "logits": np.float32(self.logit_scale) * cosines(queries, documents)[:, None],
            "num_tokens": np.array(num_tokens, np.int32)[:, None],
            "truncated": np.array(truncated, bool)[:, None],
        }


@contextlib.contextmanager
def failing(calls):
    """Answer what is left of `calls` with an unexpected error of the block; the model lives on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - such as too little memory
        pb_utils.Logger.log_error(traceback.format_exc())
        for call in calls:
            call.send(failure(f"the texts can't be scored: {error!r}", pb_utils.TritonError.INTERNAL))


def cosines(queries, documents):
    """The score of each pair, [num_pairs] float32; pairs of one query are scored together."""
    rows = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    scores = np.empty(len(queries), np.float32)
    for query, those in rows.items():
        scores[those] = mean_best_cosines(query.vectors, [documents[row].vectors for row in those])
    return scores


def read_manifest(path):
    """The builder's manifest and its digest, or an error that names the command that writes it."""
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
    content = path.read_bytes()
    return json.loads(content), hashlib.sha256(content).hexdigest()
