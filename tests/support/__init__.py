"""Helpers of several test modules: servers, checkpoints, texts, deployment files."""

import sys
from functools import partial
from pathlib import Path

from triton_rerank_build import EmbeddedServer

ROOT = Path(__file__).parents[2]
"""The checkout."""

CLIENT_COMMAND = [sys.executable, "-c", "import sys; from triton_rerank.cli.main import main; sys.exit(main())"]
"""`triton-rerank` in a process of its own."""

quick_server = partial(EmbeddedServer, exit_timeout_s=0)
"""A server that is killed at its end: a clean exit takes tritonserver two to three seconds."""
