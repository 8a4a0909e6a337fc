"""The checkpoint `demo-late`, exported and served with default options, ranks the relevant document first."""

import pytest

from support import quick_server
from triton_rerank import RerankClient
from triton_rerank_build import export
from triton_rerank_build.cli.examples import EXAMPLES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]  # exports a checkpoint of full size


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    repository = tmp_path_factory.mktemp("late") / "repository"
    export("demo-late", repository=repository)
    with quick_server(repository) as server, RerankClient(server.grpc_url, "late_interaction") as client:
        yield client


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_it_puts_the_relevant_document_on_top(client, example):
    assert client.rerank(example.query, example.documents)[0].index == example.best
