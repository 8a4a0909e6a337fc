"""Attention implementations in training on this CPU: `PYTHONPATH=loadtest python -m benchmarks.training`.

Steps of `triton-rerank-build finetune` alternate between its CPU attention, transformers' plain attention (`eager`) and
PyTorch's fused attention (`sdpa`), on the same weights and lists in bf16.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import islice

from load.workload import generated
from triton_rerank_build import _finetune_attention
from triton_rerank_build._finetune_data import TrainingList
from triton_rerank_build._finetune_losses import infonce
from triton_rerank_build._finetune_model import RankingModel
from triton_rerank_build._finetune_settings import Settings
from triton_rerank_build._finetune_train import forward
from triton_rerank_build.checkpoints.resolve import resolve_checkpoint

ATTENTIONS = {"ours": _finetune_attention.NAME, "eager": "eager", "sdpa": "sdpa"}
LISTS = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="demo", help="folder, hub id or demo (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=384, help="tokens per pair (default: %(default)s)")
    parser.add_argument(
        "--freeze-layers", type=int, default=4, help="number of lowest layers to freeze (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=8, help="steps of each implementation (default: %(default)s)")
    options = parser.parse_args()
    settings = Settings(max_length=options.max_length, freeze_layers=options.freeze_layers)
    model = RankingModel(resolve_checkpoint(options.checkpoint), settings)
    model.network.train()
    seconds: dict[str, list[float]] = {name: [] for name in ATTENTIONS}
    for number, lists in enumerate(islice(steps(), options.rounds + 1)):
        names = list(ATTENTIONS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent = timed(model, ATTENTIONS[name], lists)
            if number:  # the first round is the warm-up
                seconds[name].append(spent)
    results = [f"lists_per_s={LISTS / statistics.median(seconds['ours']):.2f}"]
    for name in ("eager", "sdpa"):
        ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"], strict=True))
        print(f"ours is {ratio:.2f} times as fast as {name}")
        results.append(f"ratio_{name}={ratio:.3f}")
    print("RESULT " + " ".join(results))


def steps() -> Iterator[list[TrainingList]]:
    """Endless batches of lists of a relevant document and four others."""
    searches = generated(5, seed=1)
    while True:
        yield [
            TrainingList(search.query, tuple(search.documents), (1.0, 0.0, 0.0, 0.0, 0.0))
            for search in islice(searches, LISTS)
        ]


def timed(model: RankingModel, attention: str, lists: list[TrainingList]) -> float:
    """Seconds of a forward and a backward pass."""
    model.network.set_attn_implementation(attention)
    start = time.perf_counter()
    infonce(*forward(model, lists)).backward()
    spent = time.perf_counter() - start
    model.network.zero_grad()
    return spent


if __name__ == "__main__":
    main()
