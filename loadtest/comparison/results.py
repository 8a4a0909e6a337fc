"""What a comparison has measured: runs, which are left to do, medians, ratios, and whether all compute the same."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from comparison.peers import OURS, PEERS

FP32 = [name for name, peer in PEERS.items() if peer.precision == "fp32"]
# Largest difference of a logit to fp32, and lowest correlation. Random weights give logits of one size, hence both.
TOLERANCES = {"fp32": (0.002, 0.999), "bf16": (0.3, 0.8)}


@dataclass(frozen=True, order=True)
class Cell:
    """Documents of a call, and callers at once, each with one call."""

    documents: int
    callers: int

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """From "100x8"."""
        documents, callers = (int(number) for number in text.split("x"))
        if documents < 1 or callers < 1:
            raise ValueError("documents and callers start at 1")
        return cls(documents, callers)

    @property
    def pairs(self) -> int:
        """In one run."""
        return self.documents * self.callers

    def __str__(self) -> str:
        return f"{self.documents}x{self.callers}"


@dataclass(frozen=True)
class Run:
    """One turn of one contender in one cell; every contender of a round gets the same searches."""

    cell: str
    round: int
    contender: str
    seconds: float
    logits: list[float]


@dataclass
class Comparison:
    """All runs so far, in a file that a later start goes on with."""

    file: Path
    shape: str
    runs: list[Run] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path, shape: str) -> "Comparison":
        """From `file`, empty if there is none."""
        if not file.exists():
            return cls(file, shape)
        said = json.loads(file.read_text(encoding="utf-8"))
        return cls(file, shape, [Run(**run) for run in said["runs"]], said["versions"])

    def save(self) -> None:
        """Write the file anew, in one step."""
        partial = self.file.with_suffix(".tmp")
        said = {"runs": [asdict(run) for run in self.runs], "versions": self.versions}
        partial.write_text(json.dumps(said), encoding="utf-8")
        partial.rename(self.file)

    def forget(self, contenders: Sequence[str]) -> None:
        """Drop what was measured of `contenders`."""
        self.runs = [run for run in self.runs if run.contender not in contenders]

    def of(self, cell: Cell, contender: str) -> dict[int, Run]:
        """Runs by round."""
        return {run.round: run for run in self.runs if run.cell == str(cell) and run.contender == contender}

    def seconds(self, cell: Cell, contender: str) -> float:
        """Median of a run."""
        return statistics.median(run.seconds for run in self.of(cell, contender).values())

    def pairs_per_s(self, cell: Cell, contender: str) -> float:
        """By the median of its runs."""
        return cell.pairs / self.seconds(cell, contender)

    def peers(self, cell: Cell) -> list[str]:
        """Those with runs in this cell, the fastest first."""
        ran = {run.contender for run in self.runs if run.cell == str(cell)} - {OURS}
        return sorted(ran, key=lambda peer: self.seconds(cell, peer))

    def ratio(self, cell: Cell, peer: str) -> float:
        """How many times faster ours is than `peer`: the median over the rounds that both ran; NaN if there is none."""
        ours, theirs = self.of(cell, OURS), self.of(cell, peer)
        ratios = [theirs[number].seconds / ours[number].seconds for number in ours.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else float("nan")

    def best_ratio(self, cell: Cell) -> float:
        """Against the fastest peer; NaN where none ran."""
        return self.ratio(cell, peers[0]) if (peers := self.peers(cell)) else float("nan")

    def left(
        self, cells: Sequence[Cell], contenders: Sequence[str], rounds: int, enough_s: float
    ) -> Iterator[tuple[Cell, int, str]]:
        """What to run next, again and again until nothing is left. Who begins changes from round to round.

        A peer that has taken `enough_s` in a cell, and is not the fastest there, gets no more rounds of it.
        """
        for cell in cells:
            for number in range(rounds):
                start = number % len(contenders)
                for contender in [*contenders[start:], *contenders[:start]]:
                    done = self.of(cell, contender)
                    if number in done or contender in self.failures:
                        continue
                    if (
                        done
                        and sum(run.seconds for run in done.values()) >= enough_s
                        and not self._leads(cell, contender)
                    ):
                        continue
                    yield cell, number, contender

    def _leads(self, cell: Cell, contender: str) -> bool:
        return contender in (OURS, *self.peers(cell)[:1])

    def agreement(self) -> dict[str, tuple[float, float]]:
        """For each contender, how its logits agree with PyTorch's fp32: largest difference, lowest correlation.

        Raises:
            ValueError: A contender computes something else, so its time says nothing.
        """
        rounds: dict[tuple[str, int], dict[str, Run]] = {}
        for run in self.runs:
            rounds.setdefault((run.cell, run.round), {})[run.contender] = run
        found: dict[str, tuple[float, float]] = {}
        for same in rounds.values():
            reference = next((run for name, run in same.items() if name in FP32), None)
            for name, run in same.items():
                if reference is None or run is reference:
                    continue
                difference = float(np.abs(np.subtract(run.logits, reference.logits)).max())
                correlation = float(np.corrcoef(run.logits, reference.logits)[0, 1])
                largest, lowest = found.get(name, (0.0, 1.0))
                found[name] = max(largest, difference), min(lowest, correlation)
        for name, (difference, correlation) in found.items():
            most, least = TOLERANCES[PEERS[name].precision if name in PEERS else "bf16"]
            if difference > most or correlation < least:
                raise ValueError(
                    f"{name} computes something else: a logit differs by {difference:.4f} ({most} allowed), "
                    f"correlation {correlation:.4f} (at least {least})"
                )
        return found
