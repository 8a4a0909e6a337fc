"""Random bodies of every dialect: each is answered, never with a 5xx."""

import logging
import os

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from support.fake_triton import FakeTriton
from support.gateway import GatewayProcess
from support.strange_bodies import BODIES, PATHS

# TRITON_RERANK_STRANGERS=10000 pytest --log-cli-level=INFO tests/integration/gateway/test_strangers.py sends more.
COUNT = int(os.environ.get("TRITON_RERANK_STRANGERS", "200"))
ALLOWED = {200, 400}

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def gateway():
    with FakeTriton() as triton, GatewayProcess(triton.url) as running:
        yield running


def test_random_bodies_are_answered_and_the_next_call_works(gateway):
    seen = {}
    with httpx.Client(base_url=gateway.url, timeout=60) as web:
        good = {"query": "q", "documents": ["1", "2"]}
        assert web.post("/rerank", json=good).status_code == 200
        before = gateway.memory()

        @settings(max_examples=COUNT, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(path=PATHS, body=BODIES)
        def ask(path, body):
            answer = web.post(path, content=body)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code in ALLOWED, (answer.status_code, answer.text)
            said = answer.json()
            if answer.status_code == 400:
                assert said["message"] == said["detail"]
                assert "Traceback" not in answer.text

        ask()
        assert web.post("/rerank", json=good).status_code == 200
        grown = gateway.memory() - before
    logging.info("%d bodies, answered with %s; memory grew by %.1f MB", sum(seen.values()), seen, grown / 1e6)
    assert set(seen) == ALLOWED
    assert grown < 100e6
    assert not [line for line in gateway.log if "Traceback" in line]
