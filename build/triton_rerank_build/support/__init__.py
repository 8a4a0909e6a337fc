"""Files, progress and optional dependencies, for all other modules."""
