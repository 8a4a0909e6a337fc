"""The published scores of bge-reranker-v2-m3, which an export of the real weights must reproduce.

Source: the model authors' README (FlagEmbedding, FlagReranker with use_fp16), which prints these logits.
"""

from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build.errors import ParityError

CHECKPOINT = "bge-reranker-v2-m3"
# The published logits were computed in fp16, whose steps are 0.004 at this size; errors of the layers add up.
TOLERANCE = 0.05
_PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)
PUBLISHED = (
    ("query", "passage", -5.65234375),
    ("what is panda?", "hi", -8.1875),
    ("what is panda?", _PANDA, 5.26171875),
)


@dataclass(frozen=True)
class PublishedScore:
    """A published pair and its logit by the graph under test."""

    query: str
    document: str
    published: float
    logit: float


def compare_published(graph: Path, tokenizer_file: Path) -> list[PublishedScore]:
    """Score the published pairs with an exported graph and its tokenizer.

    Returns:
        The pairs with both logits, which differ by TOLERANCE at most.

    Raises:
        ParityError: A logit differs by more; the message lists all of them.
    """
    from tokenizers import Tokenizer

    from triton_rerank_build.graphs.rows import encode_pair, template_layout
    from triton_rerank_build.parity.compare import graph_logits, pad_rows

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    pad_id = (tokenizer.padding or {}).get("pad_id", 0)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    layout = template_layout(tokenizer, pad_id, token_types=False)
    batches = [
        pad_rows(query, [encode_pair(tokenizer, layout, query, document)], layout=layout)
        for query, document, _ in PUBLISHED
    ]
    logits = graph_logits(graph, batches)
    scores = [PublishedScore(*known, float(logit[0, 0])) for known, logit in zip(PUBLISHED, logits, strict=True)]
    worst = max(abs(score.logit - score.published) for score in scores)
    if not worst <= TOLERANCE:  # written so that NaN fails
        table = "\n".join(f"  {score.published:9.4f} {score.logit:9.4f}  {score.document[:40]}" for score in scores)
        raise ParityError(
            f"logits differ from the published ones by {worst:.4f}, tolerance {TOLERANCE} (published, here):\n{table}"
        )
    return scores
