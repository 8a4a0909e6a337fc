"""`triton-rerank-build finetune`."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from triton_rerank_build._finetune_settings import LOSSES, NEGATIVES, Settings

_DESCRIPTION = """\
Adapt a cross-encoder to your own queries and documents. Training keeps the weights that rank held-out queries
best by nDCG@10, those it started from among them; the folder it writes is a checkpoint for `export`.
"""
_EPILOG = """\
data:
  a BEIR folder       queries.jsonl, corpus.jsonl, qrels/train.tsv (--dev: qrels/dev.tsv) or qrels.tsv
  a file .jsonl       {"query": "...", "positive": ["..."], "negatives": ["...", "..."]} a line

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
        help="where documents to rank lower come from: BM25 over a BEIR folder's corpus; BM25, the model's own "
        "mistakes first; or the data alone (%(default)s)",
    )
    for name, text in _NUMBERS.items():
        default = getattr(usual, name)
        kind = float if name in ("learning_rate", "dropout", "dev_share", "max_minutes") else int
        shown = "" if default is None else " (%(default)s)"
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, metavar="N", help=text + shown)
    parser.add_argument("--fp32", action="store_true", help="compute in fp32 instead of bf16")
    parser.set_defaults(run=run)


_NUMBERS = {
    "num_negatives": "documents beside the relevant one",
    "mining_depth": "candidates that BM25 returns",
    "lora_rank": "of the update; 0 trains every weight",
    "freeze_layers": "lowest layers to leave as they are: faster, with less memory",
    "dropout": "share of the activations dropped while training",
    "learning_rate": "at its peak (2e-4 with LoRA, 2e-5 without)",
    "epochs": "times that every query is seen",
    "batch_size": "queries in a step",
    "micro_batch": "queries that go through the model together: less needs less memory",
    "max_length": "tokens of a pair (the checkpoint's limit, at most 512)",
    "dev_share": "share of the queries that is held out without --dev",
    "dev_queries": "held-out queries at most",
    "eval_every": "steps between evaluations (a fifth of all, at most 100)",
    "patience": "evaluations without a gain that end the training",
    "save_every": "steps between saved states",
    "max_steps": "end after so many steps (all epochs)",
    "max_minutes": "end after so many minutes of training, the learning rate fallen to 0",
    "seed": "of everything random",
}


def run(args: argparse.Namespace) -> int:
    """Train, and say what came out."""
    from triton_rerank_build._finetune import finetune

    settings = Settings(
        loss=args.loss, negatives=args.negatives, bf16=not args.fp32, **{name: getattr(args, name) for name in _NUMBERS}
    )
    with _progress() as on_step:
        done = finetune(
            args.checkpoint,
            args.data,
            args.out,
            settings,
            dev_paths=args.dev,
            revision=args.revision,
            on_step=on_step,
        )
    print(f"nDCG@10 on held-out queries: {done.before:.4f} before, {done.after:.4f} after step {done.best_step}")
    if done.best_step == 0:
        print(
            f"no step ranked them better: {done.folder} holds the weights it started from; more data, other negatives "
            "or a lower rate may help"
        )
    print(f"next: triton-rerank-build export {done.folder}")
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
