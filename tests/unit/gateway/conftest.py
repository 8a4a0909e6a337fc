"""An application in front of a fake Triton, asked in process."""

import httpx
import pytest

from support.fake_triton import FakeTriton
from triton_rerank import AsyncRerankClient
from triton_rerank.gateway import Settings, create_app, metadata


@pytest.fixture
def triton():
    with FakeTriton() as server:
        yield server


@pytest.fixture
async def make(triton):
    """Settings -> an HTTP client of an application with them."""
    opened = []

    def make(**settings):
        client = AsyncRerankClient(triton.url, max_retries=0, metadata=metadata)
        app = create_app(client, Settings(**settings))
        web = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://gateway"
        )
        web.app = app
        opened.append((web, client))
        return web

    yield make
    for web, client in opened:
        await web.aclose()
        await client.close()


@pytest.fixture
def web(make):
    return make()
