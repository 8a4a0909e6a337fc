"""Results of a comparison: runs, the runs that are left, medians, ratios, and agreement of the logits with fp32."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from comparison.peers import OURS, PEERS

FP32 = [name for name, peer in PEERS.items() if peer.precision == "fp32"]
# Largest difference of a logit from fp32, and lowest correlation. Random weights give logits that are nearly equal, so
# a small difference alone proves nothing.
TOLERANCES = {"fp32": (0.002, 0.999), "bf16": (0.3, 0.8)}


@dataclass(frozen=True, order=True)
class Cell:
    """Documents per call, and concurrent callers with one call each."""

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
        """Pairs of one run."""
        return self.documents * self.callers

    def __str__(self) -> str:
        return f"{self.documents}x{self.callers}"


@dataclass(frozen=True)
class Run:
    """One run of one contender in one cell; all contenders of a round score the same searches."""

    cell: str
    round: int
    contender: str
    seconds: float
    logits: list[float]


@dataclass(frozen=True)
class Agreement:
    """Agreement of logits with fp32.

    Attributes:
        difference: Largest absolute difference.
        correlation: Lowest Pearson correlation of a run; 1 if every run has a single pair, which has no correlation.
    """

    difference: float
    correlation: float

    @classmethod
    def of(cls, logits: Sequence[float], reference: Sequence[float]) -> "Agreement":
        """Compare the logits of one run.

        Raises:
            ValueError: The numbers of logits differ.
        """
        if len(logits) != len(reference):
            raise ValueError(f"a run has {len(logits)} logits, the fp32 run of the same searches {len(reference)}")
        difference = float(np.abs(np.subtract(logits, reference)).max())
        with np.errstate(all="ignore"):  # NaN among the logits, or equal logits, give a NaN that `check` refuses
            correlation = float(np.corrcoef(logits, reference)[0, 1]) if len(logits) > 1 else 1.0
        return cls(difference, correlation)

    def worst(self, other: "Agreement | None") -> "Agreement":
        """The worse of both; NaN is the worst."""
        if other is None:
            return self
        return Agreement(
            float(np.maximum(self.difference, other.difference)), float(np.minimum(self.correlation, other.correlation))
        )

    def check(self, name: str) -> None:
        """Raise ValueError if the contender `name` computes something else than fp32."""
        most, least = TOLERANCES[PEERS[name].precision if name in PEERS else "bf16"]
        if not (self.difference <= most and self.correlation >= least):
            raise ValueError(
                f"{name} computes something else: a logit differs by {self.difference:.4f} ({most} allowed), "
                f"correlation {self.correlation:.4f} (at least {least})"
            )


@dataclass
class Comparison:
    """All runs so far. A later start resumes from the file."""

    file: Path
    shape: str
    runs: list[Run] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path, shape: str) -> "Comparison":
        """Read `file`; the comparison is empty if the file is missing."""
        if not file.exists():
            return cls(file, shape)
        record = json.loads(file.read_text(encoding="utf-8"))
        return cls(file, shape, [Run(**run) for run in record["runs"]], record["versions"])

    def save(self) -> None:
        """Replace the file atomically."""
        partial = self.file.with_suffix(".tmp")
        record = {"runs": [asdict(run) for run in self.runs], "versions": self.versions}
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.rename(self.file)

    def forget(self, contenders: Sequence[str]) -> None:
        """Remove the runs of `contenders`."""
        self.runs = [run for run in self.runs if run.contender not in contenders]

    def of(self, cell: Cell, contender: str) -> dict[int, Run]:
        """Runs by round."""
        return {run.round: run for run in self.runs if run.cell == str(cell) and run.contender == contender}

    def seconds(self, cell: Cell, contender: str) -> float:
        """Median seconds of a run."""
        return statistics.median(run.seconds for run in self.of(cell, contender).values())

    def pairs_per_s(self, cell: Cell, contender: str) -> float:
        """Throughput at the median of the runs."""
        return cell.pairs / self.seconds(cell, contender)

    def peers(self, cell: Cell) -> list[str]:
        """Peers with runs in this cell, the fastest first."""
        ran = {run.contender for run in self.runs if run.cell == str(cell)} - {OURS}
        return sorted(ran, key=lambda peer: self.seconds(cell, peer))

    def ratio(self, cell: Cell, peer: str) -> float:
        """Speedup of triton-rerank over `peer`: median over the rounds that both ran, NaN if there are none."""
        ours, theirs = self.of(cell, OURS), self.of(cell, peer)
        ratios = [theirs[number].seconds / ours[number].seconds for number in ours.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else float("nan")

    def best_ratio(self, cell: Cell) -> float:
        """Speedup over the fastest peer; NaN if no peer ran."""
        return self.ratio(cell, peers[0]) if (peers := self.peers(cell)) else float("nan")

    def left(
        self, cells: Sequence[Cell], contenders: Sequence[str], rounds: int, enough_s: float
    ) -> Iterator[tuple[Cell, int, str]]:
        """The runs that are left, in order; the contender that goes first changes from round to round.

        A peer whose runs in a cell took `enough_s` seconds gets no more rounds there, unless it is the fastest peer.
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

    def agreement(self) -> dict[str, Agreement]:
        """Agreement of each contender's logits with those of the fp32 contender of the same round.

        Contenders without a comparable run are missing: nothing is known about their logits.

        Raises:
            ValueError: The logits of a contender are beyond TOLERANCES, so its times are meaningless.
        """
        rounds: dict[tuple[str, int], dict[str, Run]] = {}
        for run in self.runs:
            rounds.setdefault((run.cell, run.round), {})[run.contender] = run
        found: dict[str, Agreement] = {}
        for runs in rounds.values():
            reference = next((runs[name] for name in FP32 if name in runs), None)
            for name, run in runs.items():
                if reference is not None and run is not reference:
                    found[name] = Agreement.of(run.logits, reference.logits).worst(found.get(name))
        for name, agreement in found.items():
            agreement.check(name)
        return found

    def not_compared(self, name: str) -> str:
        """Why `agreement` has no entry for a contender."""
        if name in FP32:
            return "the fp32 reference"
        return f"not compared: no fp32 contender ran the same searches; add one, such as --peers {FP32[0]}"
