"""The result of a comparison, as the manifest keeps it. Needs no numpy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parity:
    """How far the graph is from the reference; part of the manifest.

    Attributes:
        worst_difference: Of a logit.
        worst_batch: Where that was.
        tolerance: What was allowed.
        num_pairs: Rows that were compared.
        longest: Tokens of the longest.
        kendall_tau: Of the two orders of all rows, 1 where they are the same.
    """

    worst_difference: float
    worst_batch: str
    tolerance: float
    num_pairs: int
    longest: int
    kendall_tau: float = 1.0
