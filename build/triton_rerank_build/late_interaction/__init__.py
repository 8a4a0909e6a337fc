"""Late interaction (ColBERT): export of an encoder, and the Triton models that serve it."""
