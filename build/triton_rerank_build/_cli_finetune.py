"""`triton-rerank-build finetune`."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from triton_rerank_build._extras import require_finetune_extra
from triton_rerank_build.finetuning.settings import LOSSES, NEGATIVES, Settings

_Number = TypeVar("_Number", int, float)

_DESCRIPTION = """\
Adapt a cross-encoder to your own queries and documents. Training keeps the weights that rank held-out queries
best by nDCG@10, those it started from among them; the folder it writes is a checkpoint for `export`.
"""
_EPILOG = """\
data:
  a BEIR folder       queries.jsonl, corpus.jsonl, qrels/train.tsv (--dev: qrels/dev.tsv) or qrels.tsv
  a file .jsonl       {"query": "...", "positive": ["..."], "negatives": ["...", "..."]} a line; without negatives
                      they are looked for among the other documents of the file

examples:
  triton-rerank-build finetune BAAI/bge-reranker-v2-m3 --data my-set --out my-reranker
  triton-rerank-build finetune demo --data clicks.jsonl --negatives given --max-length 256 --out my-reranker
  triton-rerank-build export my-reranker

Run the same command again after a break: it goes on from the last saved state. --max-minutes, which counts both,
may then be another, and so may --eval-every, --save-every and --patience.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "finetune",
        help="adapt a checkpoint to your own data",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Settings()
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, an id on the Hugging Face hub, or `demo`")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="PATH", help="BEIR folders, JSON lines")
    parser.add_argument("--dev", type=Path, nargs="+", default=[], metavar="PATH", help="held-out data (a share of it)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new checkpoint")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--loss", choices=LOSSES, default=usual.loss, help="(%(default)s)")
    parser.add_argument(
        "--negatives",
        choices=NEGATIVES,
        default=usual.negatives,
        help="where documents to rank lower come from: BM25 over a BEIR folder's corpus, or over the file for lines "
        "without any; the same, the model's own mistakes first; or the data alone (%(default)s)",
    )
    for name, (kind, text) in _NUMBERS.items():
        default = getattr(usual, name)
        shown = "" if default is None else " (%(default)s)"
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, metavar="N", help=text + shown)
    parser.add_argument("--fp32", action="store_true", help="compute in fp32 instead of bf16")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    return _checked(int(text), text, 1, "1 or more")


def _count_from_0(text: str) -> int:
    return _checked(int(text), text, 0, "0 or more")


def _share(text: str) -> float:
    return _checked(float(text), text, 0, "0 or more, and below 1", below=1)


def _above_0(text: str) -> float:
    return _checked(float(text), text, sys.float_info.min, "above 0")


def _checked(value: _Number, text: str, least: float, wanted: str, below: float = math.inf) -> _Number:
    if not least <= value < below:
        raise argparse.ArgumentTypeError(f"{text} must be {wanted}")
    return value


_NUMBERS: dict[str, tuple[Callable[[str], float], str]] = {
    "num_negatives": (_count, "documents beside the relevant one"),
    "mining_depth": (_count, "candidates that BM25 returns"),
    "lora_rank": (_count_from_0, "of the update; 0 trains every weight"),
    "freeze_layers": (_count_from_0, "lowest layers to leave as they are: faster, with less memory"),
    "dropout": (_share, "share of the activations dropped while training"),
    "learning_rate": (_above_0, "at its peak (2e-4 with LoRA, 2e-5 without)"),
    "epochs": (_count, "times that every query is seen"),
    "batch_size": (_count, "queries in a step"),
    "micro_batch": (_count, "queries that go through the model together, less where it does not divide --batch-size"),
    "max_length": (_count, "tokens of a pair (the checkpoint's limit, at most 512)"),
    "dev_share": (_share, "share of the queries that is held out without --dev"),
    "dev_queries": (_count, "held-out queries at most"),
    "eval_every": (_count, "steps between evaluations (a fifth of all, at most 100)"),
    "patience": (_count, "evaluations without a gain that end the training"),
    "save_every": (_count, "steps between saved states"),
    "max_steps": (_count, "end after so many steps (all epochs)"),
    "max_minutes": (_above_0, "end after so many minutes of training, the learning rate fallen to 0"),
    "seed": (int, "of everything random"),
}


def run(args: argparse.Namespace) -> int:
    """Train, and say what came out."""
    require_finetune_extra()
    from triton_rerank_build.finetuning.train import MEASURE, finetune

    settings = Settings(
        loss=args.loss, negatives=args.negatives, bf16=not args.fp32, **{name: getattr(args, name) for name in _NUMBERS}
    )
    with _progress() as on_step:
        manifest = finetune(
            args.checkpoint,
            args.data,
            args.out,
            settings,
            dev_paths=args.dev,
            revision=args.revision,
            on_step=on_step,
        )
    measured = manifest[MEASURE]
    print(
        f"{MEASURE} on held-out queries: {measured['before']:.4f} before, {measured['after']:.4f} after step "
        f"{measured['step']}"
    )
    if measured["step"] == 0:
        print(
            f"no step ranked them better: {args.out} holds the weights it started from; more data, other negatives "
            "or a lower rate may help"
        )
    print(f"next: triton-rerank-build export {args.out}")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar of steps on stderr, where that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(desc="training", unit=" steps", disable=None, leave=False) as bar:

        def on_step(done: int, planned: int) -> None:
            if bar.total != planned:
                bar.reset(planned)
                bar.initial = done - 1
            bar.n = done
            bar.refresh()

        yield on_step
