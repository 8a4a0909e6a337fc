"""The command `triton-rerank-build`."""
