"""Helpers of several test modules: servers, checkpoints, texts, deployment files."""

from functools import partial
from pathlib import Path

from triton_rerank_build import EmbeddedServer

ROOT = Path(__file__).parents[2]
"""The checkout."""

quick_server = partial(EmbeddedServer, exit_timeout_s=0)
"""A server that is killed at its end: a clean exit takes tritonserver two to three seconds."""
