"""Turn a checkpoint into a proved Triton model repository, and serve it on a laptop."""
