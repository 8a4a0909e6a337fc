"""Texts without vectors in the cache -> vectors, from `late_encoder`, in batches of rows of similar length."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils
from max_sim import int8_vectors
from micro_batch_cuts import cut_by_cost, padded_length
from text_pairs import EXPIRED, LONGEST_TIMEOUT_US
from text_rows import ATTENDED, SCORED
from vector_cache import Encoded


class EncoderError(RuntimeError):
    """`late_encoder` returned no vectors: an error for the requests that need them, and for no other."""

    @property
    def code(self):
        """The status of these requests."""
        return pb_utils.TritonError.UNAVAILABLE if EXPIRED in str(self) else pb_utils.TritonError.INTERNAL


class Text:
    """A text to encode, and the requests that need it.

    Args:
        side: Its `Side`.
        text: The text, without prefix.
        max_length: Tokens of its row at most.
    """

    def __init__(self, side, text, max_length):
        self.side, self.text, self.max_length = side, text, max_length
        self.requests = []
        self.ids = self.roles = self.truncated = None

    def tokenize(self, ids, cut):
        """Take what `TextEncoder` makes of the text."""
        self.ids, self.roles, lacking = self.side.row(ids, self.max_length)
        self.truncated = cut or lacking


class VectorEncoder:
    """Encodes texts.

    Args:
        tokenizer: A `TextEncoder`.
        settings: Of the checkpoint.
        parameters: Of the model's config.
        max_rows: Rows of a request to the encoder at most.
    """

    def __init__(self, tokenizer, settings, parameters, max_rows):
        self.tokenizer = tokenizer
        self.pad_id, self.dim = settings["pad_id"], settings["dim"]
        self.max_length = max(settings[kind]["max_length"] for kind in ("query", "document"))
        self.model, self.max_rows = parameters["encoder_model"], max_rows
        self.batch_tokens = int(parameters["encoder_batch_tokens"])
        self.max_requests = int(parameters.get("encoder_requests", 4))
        self.vector_type = parameters.get("vector_type", "fp16")
        if self.vector_type not in ("fp16", "int8"):
            raise pb_utils.TritonModelException(f"vector_type must be fp16 or int8, got {self.vector_type!r}")

    def encode(self, texts):
        """Encode texts whose requests have not expired.

        Args:
            texts: `Text`s by key.

        Yields:
            Batch after batch, as they are encoded: an `Encoded`, or an `EncoderError`, by key.
        """
        asked = [(text.side.prefix + text.text, text.max_length, text.requests) for text in texts.values()]
        for text, tokens in zip(texts.values(), self.tokenizer.encode_awaited(asked), strict=True):
            text.tokenize(*tokens)
        batches = self.batches([item for item in texts.items() if awaited(item[1])])
        with ThreadPoolExecutor(self.max_requests) as pool:
            yield from pool.map(self.encode_batch, batches)

    def batches(self, items):
        """Batches of (key, text), longest first: at most `batch_tokens` tokens each once padded, or one text."""
        items = sorted(items, key=lambda item: len(item[1].ids), reverse=True)
        lengths = [padded_length(len(text.ids), self.max_length) for _, text in items]
        return [dict(items[start:end]) for start, end in cut_by_cost(lengths, self.batch_tokens, self.max_rows)]

    def encode_batch(self, batch):
        """The vectors of one batch, or an error, by key."""
        texts = list(batch.values())
        wait_us = max(remaining_us(request) for text in texts for request in text.requests)
        if wait_us <= 0:
            return dict.fromkeys(batch, EncoderError(EXPIRED))
        length = padded_length(len(texts[0].ids), self.max_length)
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        mask = np.zeros((len(texts), length), np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = text.roles & ATTENDED
        try:
            vectors = self.vectors(ids, mask, wait_us)
        except Exception as error:  # noqa: BLE001 - Triton raises its own type; requests that need other texts go on
            return self.encode_halves(batch, EncoderError(f"{self.model}: {error}"))
        return {key: self.encoded(text, rows) for (key, text), rows in zip(batch.items(), vectors, strict=True)}

    def encode_halves(self, failed, error):
        """As `encode_batch`, after a batch that failed, as for lack of memory: a text fails its own requests alone."""
        if len(failed) == 1 or error.code == pb_utils.TritonError.UNAVAILABLE:
            return dict.fromkeys(failed, error)
        items, middle = list(failed.items()), len(failed) // 2
        return self.encode_batch(dict(items[:middle])) | self.encode_batch(dict(items[middle:]))

    def vectors(self, ids, mask, wait_us):
        """What `late_encoder` answers: [num_rows, length, dim] float32."""
        request = pb_utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=["vectors"],
            inputs=[pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", mask)],
            timeout=0 if wait_us >= LONGEST_TIMEOUT_US else int(wait_us),
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise EncoderError(response.error().message())
        vectors = pb_utils.get_output_tensor_by_name(response, "vectors").as_numpy()
        return vectors.reshape(*ids.shape, self.dim)

    def encoded(self, text, vectors):
        """A text with those of its vectors that are scored, rounded; an EncoderError if one is not finite."""
        scored = vectors[: len(text.ids)][text.roles >= SCORED]
        # Queries stay fp16: they are few.
        small = self.vector_type == "int8" and text.side.kind == "document" and len(scored)
        rounded = scored.astype(np.float16)
        if np.isfinite(rounded).all():
            return Encoded(int8_vectors(scored) if small else rounded, len(text.ids), text.truncated)
        message = f"a {text.side.kind} vector contains NaN or infinity; an fp16 model may overflow"
        return EncoderError(f"{self.model}: {message}")


def awaited(text):
    """Whether a request that needs the text has time left; one that has expired never gets any."""
    return not all(request.expired for request in text.requests)


def remaining_us(request):
    """What is left of a request's timeout, in microseconds."""
    return request.expires_at_us - time.monotonic_ns() // 1000 if request.expires_at_us else LONGEST_TIMEOUT_US
