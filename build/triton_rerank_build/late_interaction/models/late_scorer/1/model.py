"""Scorer of late interaction: token ids of (query, document) pairs -> logits, with a cache of the texts' vectors.

Runs inside Triton's Python stub, with micro_batch_cuts.py beside it (`export` copies it there from the backend
`rerank_openvino`); needs only `numpy`.

The logit is the mean, over the query's scored vectors, of the largest dot product with one of the document's scored
vectors, times `logit_scale`. `late_encoder` computes the vectors, once for each text: the cache keeps them as fp16,
under a digest of token ids and roles, up to `cache_bytes`. New vectors are rounded to fp16 before they are scored, so a
score does not depend on whether its vectors were cached.
"""

import asyncio
import hashlib
import json
import math
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from micro_batch_cuts import cut_by_cost, padded_length

# The role of a token, as in late_tokenizer: other tokens attend to it, its vector counts in the score, or both. 0 is
# padding.
ATTENDED, SCORED = 1, 2
# What Python holds for an entry beside its vectors: the key, the array's header, a node in the order of use.
ENTRY_BYTES = 400
# Longer timeouts count as none: about 285 years.
LONGEST_TIMEOUT_US = 2**53
# Triton's own words for a request that expires in the queue: clients recognise them.
EXPIRED = "Request timeout expired"


class BadRequestError(ValueError):
    """The request is invalid: it gets INVALID_ARGUMENT and this message; the others of its batch get their answers."""


class EncoderError(RuntimeError):
    """`late_encoder` returned no vectors: an error for the requests that need them, and for no other."""


class Text:
    """A row of token ids without padding: a query or a document."""

    def __init__(self, kind, ids, roles):
        self.kind, self.ids, self.roles = kind, ids, roles
        self.key = hashlib.blake2b(ids.tobytes() + roles.tobytes(), digest_size=16).digest()


class Vectors:
    """Vectors of texts by key, least recently used first; never more bytes than `limit_bytes`."""

    def __init__(self, limit_bytes):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self.entries = OrderedDict()

    def get(self, key):
        """The vectors under `key`, now the most recently used; None if there are none."""
        vectors = self.entries.get(key)
        if vectors is not None:
            self.entries.move_to_end(key)
        return vectors

    def put(self, key, vectors):
        """Keep vectors; returns the number of entries evicted for them."""
        size = vectors.nbytes + ENTRY_BYTES
        if size > self.limit_bytes or key in self.entries:
            return 0
        evicted = 0
        while self.bytes + size > self.limit_bytes:
            _, oldest = self.entries.popitem(last=False)
            self.bytes -= oldest.nbytes + ENTRY_BYTES
            evicted += 1
        self.entries[key] = vectors
        self.bytes += size
        return evicted


class Metrics:
    """The cache's metrics, beside Triton's own on the metrics port."""

    def __init__(self, model):
        family, counter = pb_utils.MetricFamily, pb_utils.MetricFamily.COUNTER
        # Triton drops a family once Python holds no reference to it.
        self.families = [
            family("late_interaction_cache_hits_total", "Texts whose vectors were cached", counter),
            family("late_interaction_cache_misses_total", "Texts that were encoded", counter),
            family("late_interaction_cache_evictions_total", "Texts dropped for lack of room", counter),
            family("late_interaction_cache_bytes", "Memory of cached vectors", pb_utils.MetricFamily.GAUGE),
        ]
        hits, misses, evictions, size = self.families
        kinds = {kind: {"model": model, "kind": kind} for kind in ("query", "document")}
        self.hits = {kind: hits.Metric(labels=labels) for kind, labels in kinds.items()}
        self.misses = {kind: misses.Metric(labels=labels) for kind, labels in kinds.items()}
        self.evictions, self.bytes = (entry.Metric(labels={"model": model}) for entry in (evictions, size))

    def count(self, texts, missing, evictions, size):
        """Count an execution's texts, in few calls: each one crosses processes."""
        for kind, hits in self.hits.items():
            misses = sum(text.kind == kind for text in missing)
            self.misses[kind].increment(misses)
            hits.increment(sum(text.kind == kind for text in texts) - misses)
        self.evictions.increment(evictions)
        self.bytes.set(size)


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args):
        """Read the settings; the cache is empty at the start."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        path = Path(args["model_repository"]) / args["model_version"] / "manifest.json"
        if not path.exists():
            raise pb_utils.TritonModelException(f"{path} is missing: run `triton-rerank-build export CHECKPOINT`")
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        self.pad_id, self.vocab_size, self.dim = settings["pad_id"], settings["vocab_size"], settings["dim"]
        self.limits = {kind: settings[kind]["max_length"] for kind in ("query", "document")}
        self.max_length = max(self.limits.values())
        self.encoder, self.max_rows = parameters["encoder_model"], config["max_batch_size"]
        self.batch_tokens = int(parameters["encoder_batch_tokens"])
        self.logit_scale = float(parameters["logit_scale"])
        self.cache = Vectors(int(parameters["cache_bytes"]))
        self.metrics = Metrics(args["model_name"])

    async def execute(self, requests):
        """Score the pairs of all requests together; a request that is invalid or fails does not affect the others."""
        responses, pairs_of = [None] * len(requests), {}
        for index, request in enumerate(requests):
            try:
                if remaining_us(request) > 0:
                    pairs_of[index] = self.pairs(request)
                else:
                    responses[index] = failure(EXPIRED, pb_utils.TritonError.UNAVAILABLE)
            except BadRequestError as error:
                responses[index] = failure(str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # noqa: BLE001 - shapes beyond 2^31 raise many types; the other requests go on
                message = f"the request's tensors can't be read: {error!r}"
                responses[index] = failure(message, pb_utils.TritonError.INVALID_ARG)
        timeouts_us = {index: remaining_us(requests[index]) for index in pairs_of}
        vectors = await self.vectors(pairs_of, timeouts_us)
        scorable = []
        for index, pairs in pairs_of.items():
            found = (vectors[text.key] for pair in pairs for text in pair)
            error = next((value for value in found if isinstance(value, EncoderError)), None)
            if error is None:
                scorable += [(index, row, *pair) for row, pair in enumerate(pairs)]
            else:
                code = pb_utils.TritonError.UNAVAILABLE if EXPIRED in str(error) else pb_utils.TritonError.INTERNAL
                responses[index] = failure(str(error), code)
        for index, logits in self.score(scorable, vectors).items():
            responses[index] = pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])
        return responses

    def pairs(self, request):
        """The (query, document) pairs of a request, checked: not every runtime refuses token ids beyond its tables."""
        sides = [self.texts(request, kind) for kind in ("query", "document")]
        if len(sides[0]) != len(sides[1]):
            raise BadRequestError(f"got {len(sides[0])} queries and {len(sides[1])} documents")
        return list(zip(*sides, strict=True))

    def texts(self, request, kind):
        """The rows of one side; equal rows that follow each other are one `Text`."""
        ids, roles = (tensor(request, f"{kind}_{what}") for what in ("ids", "roles"))
        if ids.shape != roles.shape:
            raise BadRequestError(f"{kind}_ids has shape {list(ids.shape)} and {kind}_roles {list(roles.shape)}")
        lengths = (roles != 0).sum(axis=1)
        if not np.array_equal(roles != 0, np.arange(roles.shape[1]) < lengths[:, None]) or roles.max() > 3:
            raise BadRequestError(f"{kind}_roles must be 1 to 3 for the tokens of a row, then 0 for its padding")
        if not (roles[:, 0] & ATTENDED).all():
            raise BadRequestError(f"{kind}_roles must be 1 or 3 for the first token of a row")
        if lengths.max() > self.limits[kind]:
            raise BadRequestError(f"a {kind} has {lengths.max()} tokens, the model takes {self.limits[kind]}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise BadRequestError(f"{kind}_ids must be 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}")
        texts = []
        for row, length in enumerate(lengths):
            same = row and np.array_equal(ids[row], ids[row - 1]) and np.array_equal(roles[row], roles[row - 1])
            texts.append(texts[-1] if same else Text(kind, ids[row, :length], roles[row, :length]))
        return texts

    async def vectors(self, pairs_of, timeouts_us):
        """Vectors, or an EncoderError, by key, for every text of `pairs_of`: from the cache or from `late_encoder`.

        A batch for `late_encoder` has the longest timeout of the requests that need its texts.
        """
        texts, waits_us = {}, {}
        for index, pairs in pairs_of.items():
            for text in {text.key: text for pair in pairs for text in pair}.values():
                texts[text.key] = text
                waits_us[text.key] = max(waits_us.get(text.key, 0), timeouts_us[index])
        found = {key: vectors for key in texts if (vectors := self.cache.get(key)) is not None}
        missing = [text for key, text in texts.items() if key not in found]
        batches = self.batches(missing)
        waits = [max(waits_us[text.key] for text in batch) for batch in batches]
        answers = await asyncio.gather(*map(self.encode, batches, waits))
        evictions = 0
        for batch, answer in zip(batches, answers, strict=True):
            for text, vectors in zip(batch, answer, strict=True):
                found[text.key] = vectors
                if not isinstance(vectors, EncoderError):
                    evictions += self.cache.put(text.key, vectors)
        self.metrics.count(texts.values(), missing, evictions, self.cache.bytes)
        return found

    def batches(self, texts):
        """Batches of texts, longest first: at most `encoder_batch_tokens` tokens each once padded, or one text."""
        texts = sorted(texts, key=lambda text: len(text.ids), reverse=True)
        lengths = [padded_length(len(text.ids), self.max_length) for text in texts]
        return [texts[start:end] for start, end in cut_by_cost(lengths, self.batch_tokens, self.max_rows)]

    async def encode(self, batch, wait_us):
        """For each text its scored vectors, [num_vectors, dim] float16, or an EncoderError."""
        length = padded_length(len(batch[0].ids), self.max_length)
        ids = np.full((len(batch), length), self.pad_id, np.int32)
        mask = np.zeros((len(batch), length), np.int32)
        for row, text in enumerate(batch):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = text.roles & ATTENDED
        request = pb_utils.InferenceRequest(
            model_name=self.encoder,
            requested_output_names=["vectors"],
            inputs=[pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)],
            timeout=0 if wait_us >= LONGEST_TIMEOUT_US else max(1, int(wait_us)),
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        try:
            response = await request.async_exec()
        except Exception as error:  # noqa: BLE001 - Triton raises its own type; requests that need other texts go on
            return [EncoderError(f"{self.encoder}: {error}")] * len(batch)
        if response.has_error():
            return [EncoderError(f"{self.encoder}: {response.error().message()}")] * len(batch)
        vectors = pb_utils.get_output_tensor_by_name(response, "vectors").as_numpy()
        vectors = vectors.reshape(len(batch), length, self.dim)
        return [self.scored_vectors(text, rows[: len(text.ids)]) for text, rows in zip(batch, vectors, strict=True)]

    def scored_vectors(self, text, vectors):
        """Those of a text's vectors that are scored, as fp16; an EncoderError if one is not finite."""
        scored = vectors[text.roles >= SCORED].astype(np.float16)
        if np.isfinite(scored).all():
            return scored
        message = f"a {text.kind} vector contains NaN or infinity; an fp16 model may overflow"
        return EncoderError(f"{self.encoder}: {message}")

    def score(self, scorable, vectors):
        """Logits [num_pairs, 1] float32 by request index, of (index, row, query, document)."""
        logits, by_query = {}, {}
        for index, row, query, document in scorable:
            logits.setdefault(index, []).append(0.0)
            by_query.setdefault(query.key, []).append((index, row, document.key))
        for key, documents in by_query.items():
            cosines = mean_best_cosines(vectors[key], [vectors[document] for _, _, document in documents])
            for (index, row, _), cosine in zip(documents, cosines, strict=True):
                logits[index][row] = self.logit_scale * cosine
        return {index: np.array(values, np.float32)[:, None] for index, values in logits.items()}


def mean_best_cosines(query, documents):
    """For each document the mean, over the query's vectors, of the best dot product with one of the document's.

    -1, the lowest cosine, for a document without vectors; 0 for every document of a query without vectors.
    """
    lengths = np.array([len(vectors) for vectors in documents])
    cosines = np.where(lengths == 0, -1.0, 0.0)
    if not len(query) or not lengths.any():
        return cosines if len(query) else np.zeros(len(documents))
    joined = np.concatenate([vectors for vectors in documents if len(vectors)]).astype(np.float32)
    products = query.astype(np.float32) @ joined.T  # [num_query_vectors, num_document_vectors]
    starts = np.cumsum(lengths[lengths > 0]) - lengths[lengths > 0]
    cosines[lengths > 0] = np.maximum.reduceat(products, starts, axis=1).mean(axis=0)
    return cosines


def remaining_us(request):
    """What is left of the request's timeout, in microseconds; infinity if it has none."""
    expires_at_us = int(pb_utils.get_input_tensor_by_name(request, "expires_at_us").as_numpy()[0, 0])
    return expires_at_us - time.monotonic_ns() // 1000 if expires_at_us else math.inf


def tensor(request, name):
    """An input tensor [num_pairs, length]."""
    values = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    if values.ndim != 2 or not values.size:
        raise BadRequestError(f"{name} must have shape [num_pairs, length], got {list(values.shape)}")
    return values


def failure(message, code):
    """An error response to one request."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
