"""The result of a comparison, as the manifest records it. Importing this module does not import numpy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parity:
    """Differences between the graph and the reference; part of the manifest.

    Attributes:
        worst_difference: Largest difference of a logit.
        worst_batch: Name of the batch with that difference.
        tolerance: Largest difference that was accepted.
        num_pairs: Rows that were compared.
        longest: Tokens of the longest row.
        kendall_tau: Kendall's tau of the two orders of all rows; 1 if they are equal.
        score_change: Largest change of a relevance_score, over whole texts; None in late interaction, and in manifests
            of release 0.1.0.
        reordered_margin: Largest difference of two logits of the reference that the graph orders the other way, over
            whole texts; 0 if it reorders none. Below what a logit moves by with the rows beside it, it is noise.
    """

    worst_difference: float
    worst_batch: str
    tolerance: float
    num_pairs: int
    longest: int
    kendall_tau: float = 1.0
    score_change: float | None = None
    reordered_margin: float | None = None
