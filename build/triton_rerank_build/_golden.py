"""The published scores of bge-reranker-v2-m3, which a download of the real weights must give.

Source: the model authors' README (FlagEmbedding, FlagReranker with use_fp16), which prints these logits.
"""

from dataclasses import dataclass
from pathlib import Path

from triton_rerank_build._errors import ParityError, RepositoryError
from triton_rerank_build._export import MODEL_FILE
from triton_rerank_build._repository import CROSS_ENCODER, TOKENIZER, TOKENIZER_FILE
from triton_rerank_build._verify import verify

CHECKPOINT = "bge-reranker-v2-m3"
# The published logits were computed in fp16, whose steps are 0.004 at this size; layers add to that.
TOLERANCE = 0.05
_PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)
GOLDEN = (
    ("query", "passage", -5.65234375),
    ("what is panda?", "hi", -8.1875),
    ("what is panda?", _PANDA, 5.26171875),
)


@dataclass(frozen=True)
class GoldenScore:
    """One published pair and what is installed here makes of it."""

    query: str
    document: str
    published: float
    logit: float


def verify_golden(repository: str | Path = "model_repository") -> list[GoldenScore]:
    """Score the published pairs with the installed graph and tokenizer.

    Returns:
        The pairs with both logits, none further apart than TOLERANCE.

    Raises:
        RepositoryError: The repository is not intact, or holds another checkpoint.
        ParityError: A logit is further from the published one; the message says by how much.
    """
    from tokenizers import Tokenizer

    from triton_rerank_build._parity import graph_logits, pad
    from triton_rerank_build._tokenizer import encode_pair

    repository = Path(repository)
    manifest = verify(repository)
    if not manifest.checkpoint.endswith(CHECKPOINT):
        raise RepositoryError(
            f"the published scores are those of BAAI/{CHECKPOINT}; {repository} holds {manifest.checkpoint}"
        )
    tokenizer = Tokenizer.from_file(str(repository / TOKENIZER / TOKENIZER_FILE))
    pad_id = (tokenizer.padding or {}).get("pad_id", 0)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batches = [pad(query, [encode_pair(tokenizer, query, document)], pad_id) for query, document, _ in GOLDEN]
    logits = graph_logits(repository / CROSS_ENCODER / MODEL_FILE, batches)
    scores = [GoldenScore(*golden, float(logit[0, 0])) for golden, logit in zip(GOLDEN, logits, strict=True)]
    worst = max(abs(score.logit - score.published) for score in scores)
    if not worst <= TOLERANCE:  # not a number is no agreement either
        table = "\n".join(f"  {score.published:9.4f} {score.logit:9.4f}  {score.document[:40]}" for score in scores)
        raise ParityError(f"off the published scores by {worst:.4f}, allowed {TOLERANCE} (published, here):\n{table}")
    return scores
