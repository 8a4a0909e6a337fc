"""Helpers of several test modules: servers, checkpoints, texts, deployment files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
