"""The proof that an exported graph computes what PyTorch computes."""
