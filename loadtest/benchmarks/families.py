"""Logits and speed of an exported network against transformers in PyTorch, at real sizes, with random weights.

Run: `PYTHONPATH=loadtest python -m benchmarks.families qwen3-0.6b --lengths 2 33 512 2048 8192`. Both compute the same
rows of random tokens in fp32, one at each of `--lengths`, and a batch of `--pairs` rows of `--length` tokens, by turns.
The graph runs in OpenVINO: the logits in f32, the speed also in the precision that `rerank_openvino` chooses.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from triton_rerank_build.contract import OUTPUT_NAME
from triton_rerank_build.graphs.cross_encoder import RerankGraph
from triton_rerank_build.graphs.decoder import DecoderGraph
from triton_rerank_build.graphs.modernbert import ModernGraph
from triton_rerank_build.graphs.networks import classifier_logits
from triton_rerank_build.graphs.onnx import write_graph

_BASE = {"num_labels": 1, "vocab_size": 32_000}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", _BASE),
    "camembert-base": ("camembert", _BASE | {"max_position_embeddings": 514, "type_vocab_size": 1}),
    "electra-base": (
        "electra",
        _BASE | {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "electra-small": ("electra", _BASE),
    "distilbert-base": ("distilbert", _BASE),
    "modernbert-base": ("modernbert", {"num_labels": 1}),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
            "tie_word_embeddings": True,
        },
    ),
}
_ANSWERS = 9693, 2152  # yes and no in Qwen's vocabulary

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2, 33, 180, 512])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--length", type=int, default=180)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    longest = max(*options.lengths, options.length)
    torch.manual_seed(0)
    model, logits = network(options.size)
    rows = [tokens(model, 1, length, seed=length) for length in options.lengths]
    expected = [reference(logits, *row) for row in rows]
    batch = tokens(model, options.pairs, options.length, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        graph = graph_of(options.size, copy.deepcopy(model), longest)
        write_graph(graph, path, max_length=longest, output_name=OUTPUT_NAME)
        del graph
        file_mb = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        run = runner(path, "f32")
        worst = max(float(np.abs(run(*row) - want).max()) for row, want in zip(rows, expected, strict=True))
        works = [partial(reference, logits, *batch), partial(run, *batch), partial(runner(path, "bf16"), *batch)]
        slow, f32, bf16 = fastest(works, options.rounds)
    print(
        f"RESULT size={options.size} worst_difference={worst:.2g} longest={longest} file_mb={file_mb:.0f} "
        f"speed_f32={slow / f32:.2f} speed_bf16={slow / bf16:.2f} "
        f"tokens_per_s_f32={options.pairs * options.length / f32:.0f}"
    )


def network(size: str) -> tuple[Any, Logits]:
    """A model with random weights, and its reference."""
    family, fields = SIZES[size]
    config = AutoConfig.for_model(family, **fields)
    if family != "qwen3":
        model = AutoModelForSequenceClassification.from_config(config).eval()
        return model, classifier_logits(model)
    model = AutoModelForCausalLM.from_config(config).eval()

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        last = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
        chances = model.lm_head(last)[:, list(_ANSWERS)].log_softmax(1)
        return (chances[:, 0] - chances[:, 1])[:, None]

    return model, logits


def graph_of(size: str, model: Any, longest: int) -> torch.nn.Module:  # noqa: ANN401  # transformers has no types
    """The network that is exported."""
    if SIZES[size][0] == "modernbert":
        head = [model.head.dense, model.head.act, model.head.norm, model.classifier]
        return ModernGraph(model.model, head, mean=False, max_length=longest, dtype=torch.float32).eval()
    if SIZES[size][0] != "qwen3":
        return RerankGraph(model, dtype=torch.float32, token_types=False).eval()
    head = model.lm_head.weight
    score = head[_ANSWERS[0]] - head[_ANSWERS[1]]
    return DecoderGraph(model.model, score, max_length=longest, dtype=torch.float32).eval()


def tokens(model: Any, pairs: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Random ids and a mask without padding."""
    ids = np.random.default_rng(seed).integers(5, model.config.vocab_size, (pairs, length), dtype=np.int32)
    return ids, np.ones_like(ids)


def reference(logits: Logits, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """PyTorch's logits."""
    with torch.inference_mode():
        return logits(torch.from_numpy(ids).long(), torch.from_numpy(mask).long()).numpy()


def runner(path: Path, precision: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Runs the graph as `rerank_openvino` does."""
    properties = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(str(path), "CPU", properties).create_infer_request()
    return lambda ids, mask: request.infer({"input_ids": ids, "attention_mask": mask})[OUTPUT_NAME].copy()


def fastest(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of the fastest call of each, which take turns; the first turn does not count."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):
        for work, found in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [min(found[1:]) for found in times]


if __name__ == "__main__":
    main()
