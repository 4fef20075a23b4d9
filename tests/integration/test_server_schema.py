"""Requests made up from the server's own OpenAPI schema, and around it."""

import pytest
from hypothesis import HealthCheck, given, settings

from guards import build_guard, lively_model
from lasa.data.prompts import user_prompt
from servers import serving

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install lasa[test]")
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/responses", "POST"),
    ("/v1/moderations", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]
CONFORMANCE = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def schema(tokenizer):
    prompts = [user_prompt(str(i), "en", text) for i, text in enumerate(("water the plant", "paint", "run", "cook"))]
    guard = build_guard(lively_model("llama", tokenizer), tokenizer, prompts)
    with serving(guard, max_new_tokens=5) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_operation_is_fuzzed(schema):
    found = {(one.ok().path, one.ok().method.upper()) for one in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [(*one, GenerationMode.POSITIVE) for one in OPERATIONS]
    + [(*one, GenerationMode.NEGATIVE) for one in OPERATIONS if one[1] == "POST"],
)
def test_every_answer_keeps_to_the_schema_and_none_is_a_server_error(schema, path, method, mode):
    operation = schema[path][method]
    statuses = set()

    @settings(max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def fuzz(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # otherwise nearly all is 404
            if mode is GenerationMode.POSITIVE and "messages" in case.body:
                case.body["messages"].append({"role": "user", "content": "hello"})  # otherwise nearly all is 400
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        checks = [*CONFORMANCE, negative_data_rejection] if mode is GenerationMode.NEGATIVE else CONFORMANCE
        case.validate_response(response, checks=checks)

    fuzz()
    if mode is GenerationMode.POSITIVE and path != "/v1/models/{name}":
        assert 200 in statuses
