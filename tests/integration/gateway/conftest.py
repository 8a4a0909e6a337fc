"""A gateway in front of the demo reranker."""

import pytest

from support.gateway import GatewayProcess


@pytest.fixture(scope="session")
def gateway(server):
    with GatewayProcess(server.grpc_url, "--model-alias", "rerank-english-v3.0") as running:
        yield running
