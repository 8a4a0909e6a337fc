"""Requests with plain tritonclient: any tensors, no checks."""

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from load.triton_statistics import totals


def infer(url, model, outputs, parameters=None, timeout_us=None, **tensors):
    """Outputs by name; tensors are object arrays of bytes, or of numbers."""
    inputs = []
    for name, values in tensors.items():
        tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with triton.InferenceServerClient(url) as client:
        asked = [triton.InferRequestedOutput(name) for name in outputs]
        answer = client.infer(
            model, inputs, outputs=asked, parameters=parameters, timeout=timeout_us, client_timeout=120
        )
    return {name: answer.as_numpy(name) for name in outputs}


def column(texts):
    """[num_pairs, 1] of bytes."""
    return np.array([[text.encode() if isinstance(text, str) else text] for text in texts], object)


def tokenize(url, pairs, **parameters):
    """The tokenizer model's outputs for (query, document) pairs."""
    queries, documents = zip(*pairs, strict=True)
    outputs = ["input_ids", "attention_mask", "num_tokens", "truncated"]
    return infer(url, "tokenizer", outputs, parameters or None, query=column(queries), document=column(documents))


def statistics(url, model):
    """Triton's counts for a model: successful requests, executions."""
    state = totals(url, model)
    return state.requests, state.executions
