"""Fixtures of the client's unit tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.fake_triton import FakeTriton


@pytest.fixture
def client(client_class: type[Any], server: FakeTriton) -> Iterator[Any]:
    """A client of the test file's `server`."""
    with client_class(server.url, timeout=10) as made:
        yield made
