"""Adapt a cross-encoder to one's own data: `train.finetune`, on sentence-transformers."""
