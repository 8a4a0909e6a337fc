"""Losses over lists: one query's documents, a relevant one and others.

Each takes logits and relevances, [num_lists, list_length] fp32, padded with relevance `ABSENT`, and returns
the mean over the lists.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

ABSENT = -1.0
"""Relevance of a place that no document fills."""

Loss = Callable[[Tensor, Tensor], Tensor]


def bce(logits: Tensor, relevances: Tensor) -> Tensor:
    """Pointwise: is the document relevant? Mean over a list's documents."""
    per_pair = functional.binary_cross_entropy_with_logits(logits, (relevances > 0).float(), reduction="none")
    return _mean(per_pair, relevances >= 0)


def mse(logits: Tensor, relevances: Tensor) -> Tensor:
    """Pointwise: sigmoid(logit) should be the relevance as a share of the list's highest."""
    highest = relevances.amax(dim=1, keepdim=True).clamp(min=1.0)
    return _mean((torch.sigmoid(logits) - relevances / highest) ** 2, relevances >= 0)


def ranknet(logits: Tensor, relevances: Tensor) -> Tensor:
    """Pairwise: log(1 + exp(s_j - s_i)) over couples where i is more relevant (Burges et al., ICML 2005)."""
    margins = logits[:, :, None] - logits[:, None, :]  # [num_lists, list_length, list_length]
    present = (relevances >= 0)[:, :, None] & (relevances >= 0)[:, None, :]
    return _mean(functional.softplus(-margins), present & (relevances[:, :, None] > relevances[:, None, :]))


def listnet(logits: Tensor, relevances: Tensor) -> Tensor:
    """Listwise: cross-entropy of softmax(relevances) and softmax(logits) (Cao et al., ICML 2007)."""
    absent = relevances < 0
    target = torch.softmax(relevances.masked_fill(absent, -torch.inf), dim=1)
    return -(target * _log_softmax(logits, absent)).sum(dim=1).mean()


def infonce(logits: Tensor, relevances: Tensor) -> Tensor:
    """Listwise: cross-entropy of finding the first, relevant document among the list's others."""
    return -_log_softmax(logits, relevances < 0)[:, 0].mean()


def _log_softmax(logits: Tensor, absent: Tensor) -> Tensor:
    # A large negative number, not -inf: 0 * -inf would be NaN in a sum with weights.
    return torch.log_softmax(logits.masked_fill(absent, -1e9), dim=1)


def _mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean over what is present in each list, then over the lists."""
    counts = present.flatten(1).sum(dim=1).clamp(min=1)
    return ((values * present).flatten(1).sum(dim=1) / counts).mean()


LOSS_OF: dict[str, Loss] = {"bce": bce, "mse": mse, "ranknet": ranknet, "listnet": listnet, "infonce": infonce}
