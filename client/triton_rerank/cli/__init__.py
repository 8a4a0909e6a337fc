"""The command `triton-rerank`."""
