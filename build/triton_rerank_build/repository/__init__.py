"""The Triton model repository: layout, installation, manifest, verification."""
