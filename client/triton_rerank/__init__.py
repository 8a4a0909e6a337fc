"""Rerank documents with a cross-encoder served by NVIDIA Triton."""
