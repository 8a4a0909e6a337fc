"""Compare triton-rerank with other rerankers on this machine: `PYTHONPATH=loadtest python -m comparison.compare`.

All contenders score the same searches with the same checkpoint. They alternate: one computes while the others are
stopped. Peers are installed on first use, each in an environment of its own in the cache folder. Results are stored
there, and the same command resumes from them, so a comparison can run in pieces (--minutes).
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from benchmarks.bench import repository_of
from benchmarks.shapes import SHAPES
from benchmarks.variants import with_max_wait
from comparison.peer_worker import MAX_LENGTH
from comparison.peers import OURS, PEERS, Contenders, PeerError
from comparison.results import Agreement, Cell, Comparison, Run
from load.workload import Search, generated
from triton_rerank_build.checkpoints.demo import demo_checkpoint
from triton_rerank_build.support.files import cache_folder

CELLS = "10x1 100x1 1000x1 10x8 10x32"
MAX_WAIT_S = 600  # peers have no queue limit; that of the CPU config would refuse some of 32 callers
UNFINISHED = 75  # exit status if runs are left (EX_TEMPFAIL of sysexits.h)
SPARE_TOKENS = 16  # margin below MAX_LENGTH, since the contenders truncate differently


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    started = time.monotonic()
    options = parse(arguments)
    folder = cache_folder() / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    comparison = Comparison.load(folder / f"compare-{options.shape}.json", options.shape)
    comparison.forget([OURS, *PEERS] if options.fresh else options.again)
    finished = options.show or measure(comparison, options, folder, started)
    if not comparison.runs:
        print("compare.py: nothing was measured", file=sys.stderr)
        return 1
    try:
        agreement = comparison.agreement()
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    if options.plot:
        from comparison.plot import draw

        draw(options.plot, comparison, options.cells)
    show(comparison, options, agreement)
    return 0 if finished else UNFINISHED


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="base", help="checkpoint (default: %(default)s)")
    parser.add_argument(
        "--cells",
        type=lambda text: [Cell.parse(part) for part in text.split()],
        default=CELLS,
        metavar='"100x1 ..."',
        help="documents x callers (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each cell (default: %(default)s)")
    parser.add_argument(
        "--enough-s",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="no more rounds for a peer whose runs in a cell took this long, unless it is the fastest (%(default)g)",
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all", metavar="PEER")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help=f"stop after this time; exit status {UNFINISHED} if runs are left"
    )
    parser.add_argument("--again", nargs="+", default=[], choices=[OURS, *PEERS], metavar="NAME", help="measure again")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--show", action="store_true", help="print the stored results and measure nothing")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the results")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args(arguments)


def measure(comparison: Comparison, options: argparse.Namespace, folder: Path, started: float) -> bool:
    """Run and store what is left; return whether everything is done."""
    repository = repository_of(options.shape)
    checkpoint = demo_checkpoint() if options.shape == "demo" else cache_folder() / f"random-{options.shape}"
    fit = Fitting(repository)
    end, ran = started + 60 * (options.minutes or float("inf")), 0
    left = (options.cells, [OURS, *options.peers], options.rounds, options.enough_s)
    with (
        tempfile.TemporaryDirectory() as served,
        Contenders(
            checkpoint,
            with_max_wait(MAX_WAIT_S, repository, Path(served)),
            folder,
            fit(next(generated(20, "warm-up"))),
        ) as contenders,
    ):
        while following := next(comparison.left(*left), None):
            cell, number, name = following
            try:
                contender = contenders.get(name)
                if ran and time.monotonic() + expected_s(comparison, cell, name) > end:
                    print("time is up; the same command resumes here", file=sys.stderr)
                    return False
                searches = [fit(search) for search in islice(generated(cell.documents, number), cell.callers)]
                answer = contender.answer(searches, cell.callers)
            except PeerError as error:
                comparison.failures[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr)
                continue
            logits = [round(logit, 6) for some in answer.logits for logit in some]
            comparison.runs.append(Run(str(cell), number, name, answer.seconds, logits))
            comparison.versions[name] = contender.versions
            comparison.save()
            ran += 1
            print(
                f"{cell} round {number + 1}/{options.rounds} {name:14} {answer.seconds:8.2f} s "
                f"{cell.pairs / answer.seconds:7.1f} pairs/s",
                file=sys.stderr,
            )
    return True


def expected_s(comparison: Comparison, cell: Cell, name: str) -> float:
    """Estimate of a run's seconds from the contender's longest run; 0 if it has none."""
    known = [run for run in comparison.runs if run.contender == name]
    longest = max(known, key=lambda run: len(run.logits), default=None)
    return cell.pairs * longest.seconds / len(longest.logits) if longest else 0.0


class Fitting:
    """Cuts documents to the limit and strips them: the contenders truncate differently, and infinity strips."""

    def __init__(self, repository: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(repository / "tokenizer/1/tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, search: Search) -> Search:
        """Return the search with documents that fit."""
        query, *documents = self._tokenizer.encode_batch([search.query, *search.documents], add_special_tokens=False)
        room = MAX_LENGTH - SPARE_TOKENS - len(query)
        cut = (
            (text if len(encoding) <= room else text[: encoding.offsets[room][0]]).strip()
            for text, encoding in zip(search.documents, documents, strict=True)
        )
        return Search(search.query, tuple(cut))


def show(comparison: Comparison, options: argparse.Namespace, agreement: dict[str, Agreement]) -> None:
    """Print the table and the ratios."""
    cells: list[Cell] = options.cells
    names = [name for name in (OURS, *options.peers) if name in {run.contender for run in comparison.runs}]
    if options.json:
        print(json.dumps(as_dict(comparison, cells, names, agreement), ensure_ascii=False))
        return
    print(f"{options.shape}, {machine()}; pairs/s, median (rounds); documents x callers")
    print("| | " + " | ".join(map(str, cells)) + " |")
    print("|---|" + "---|" * len(cells))
    for name in names:
        label = PEERS[name].label if name in PEERS else f"**{name}**"
        figures = [
            f"{comparison.pairs_per_s(cell, name):.1f} ({len(runs)})" if (runs := comparison.of(cell, name)) else "-"
            for cell in cells
        ]
        print(f"| {label} | " + " | ".join(figures) + " |")
    print("| **times the best peer** | " + " | ".join(f"{comparison.best_ratio(cell):.2f}" for cell in cells) + " |")
    for name in names:
        versions = ", ".join(f"{package} {number}" for package, number in comparison.versions[name].items())
        found = agreement.get(name)
        logits = (
            f"within {found.difference:.4f} of fp32, correlation {found.correlation:.4f}"
            if found
            else comparison.not_compared(name)
        )
        print(f"{name}: {versions}; logits: {logits}")
    for name, reason in comparison.failures.items():
        print(f"{name}: not measured: {reason}")
    print(result(comparison, cells))


def result(comparison: Comparison, cells: Sequence[Cell]) -> str:
    """The line for scripts: ratios to the fastest peer, NaN if a cell has no result."""
    keys = {"10": Cell(10, 1), "100": Cell(100, 1), "1000": Cell(1000, 1)}
    keys["c8"] = max((cell for cell in cells if cell.callers == 8), default=Cell(100, 8))
    keys["c32"] = max((cell for cell in cells if cell.callers == 32), default=Cell(100, 32))
    return "RESULT " + " ".join(
        f"best_peer_ratio_{key}={comparison.best_ratio(cell):.3f}" for key, cell in keys.items()
    )


def as_dict(
    comparison: Comparison, cells: Sequence[Cell], names: Sequence[str], agreement: dict[str, Agreement]
) -> dict[str, object]:
    """The object that --json prints; `agreement` is null for a contender whose logits were not compared."""
    return {
        "shape": comparison.shape,
        "machine": machine(),
        "versions": comparison.versions,
        "failures": comparison.failures,
        "agreement": {name: asdict(agreement[name]) if name in agreement else None for name in names},
        "cells": [
            {
                "documents": cell.documents,
                "callers": cell.callers,
                "seconds": {
                    name: [run.seconds for _, run in sorted(comparison.of(cell, name).items())] for name in names
                },
                "ratios": {peer: comparison.ratio(cell, peer) for peer in comparison.peers(cell)},
            }
            for cell in cells
        ],
    }


def machine() -> str:
    """Cores, processor and Python."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":")[1].strip() for line in about.splitlines() if line.startswith("model name")), "CPU")
    return f"{len(os.sched_getaffinity(0))} cores of {model}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
