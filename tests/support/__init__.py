"""What several tests share: servers, checkpoints, texts, the deployment files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
