"""Replacements for FlagEmbedding's FlagReranker and sentence-transformers' CrossEncoder, served by Triton.

    from triton_rerank.compat import FlagReranker     # instead of: from FlagEmbedding import FlagReranker

    reranker = FlagReranker("BAAI/bge-reranker-v2-m3", use_fp16=True)
    scores = reranker.compute_score([["what is panda?", "hi"], ["what is panda?", "The giant panda is a bear."]])

The server holds the model. The checkpoint's name is compared with the server's, and a difference is logged as a
warning. Arguments that only say where and how fast the model runs (`devices`, `use_fp16`, `batch_size`, `cache_dir`)
are accepted and ignored. Arguments that would change scores and have no counterpart here raise TypeError. The server's
address is the argument `url`, else $TRITON_RERANK_URL, else localhost:8001; several are separated by commas.
"""

from triton_rerank.compat.cross_encoder import CrossEncoder
from triton_rerank.compat.flag_reranker import FlagReranker

__all__ = ["CrossEncoder", "FlagReranker"]
