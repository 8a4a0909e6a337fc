"""The description of the interface, and its examples."""

import pytest
from jsonschema import Draft202012Validator

from triton_rerank.gateway.openapi import EXAMPLES, SCORE_EXAMPLE


@pytest.fixture
async def api(web):
    return (await web.get("/openapi.json")).json()


def schema_of(api, path, part):
    """A self-contained schema of a request or of the answer 200."""
    operation = api["paths"][path]["post"]
    holder = operation["requestBody"] if part == "request" else operation["responses"]["200"]
    return {**holder["content"]["application/json"]["schema"], "components": api["components"]}


@pytest.mark.parametrize("name", EXAMPLES)
async def test_examples_work_and_fit_the_schemas(web, api, name):
    body = EXAMPLES[name][1]
    Draft202012Validator(schema_of(api, "/v1/rerank", "request")).validate(body)
    answer = await web.post("/v1/rerank", json=body)
    assert answer.status_code == 200
    validator = Draft202012Validator(schema_of(api, "/v1/rerank", "answer"))
    validator.validate(answer.json())


async def test_the_example_of_score_works(web, api):
    Draft202012Validator(schema_of(api, "/score", "request")).validate(SCORE_EXAMPLE)
    answer = await web.post("/score", json=SCORE_EXAMPLE)
    Draft202012Validator(schema_of(api, "/score", "answer")).validate(answer.json())


async def test_every_path_is_there(web, api):
    for path, operations in api["paths"].items():
        for method in operations:
            answer = await web.request(method, path.replace("{name}", "m"), json={})
            assert answer.status_code == (400 if method == "post" else 200), path


async def test_keys_are_described_if_they_are_needed(make, api):
    assert "securitySchemes" not in api["components"]
    secured = (await make(api_keys=("k",)).get("/openapi.json")).json()
    assert secured["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert secured["paths"]["/v1/rerank"]["post"]["security"] == [{"key": []}]


async def test_docs_load_nothing_from_elsewhere(web):
    answer = await web.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "//" not in answer.text.replace("://", "")
    assert "http" not in answer.text.replace("https?", "")
