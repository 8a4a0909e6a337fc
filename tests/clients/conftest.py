"""Tests with the clients that callers use, each group in an environment of its own: `make test-clients`."""

import os

# tests/clients/environments.sh makes the environments; without them there is nothing to run.
collect_ignore_glob = [] if "TRITON_RERANK_CLIENTS" in os.environ else ["test_*.py"]
