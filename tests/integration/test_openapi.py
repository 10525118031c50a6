"""Requests made from the API's own description, by a tenant who also tries the things of another."""

import secrets
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok

from cli.serve import Service
from jobs.api_keys import create_key
from jobs.database import Role, build_engine, build_sessions
from tests.plain_client import Client

EXAMPLES = 10
"""Of requests for each operation: enough for every field, and the suite stays short."""
PRIVATE = f"private-{secrets.token_hex(8)}"
"""In everything that the first tenant has."""
ROWS = '{"instruction": "q", "response": "a"}\n'
CHECKS_WANTED = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    client = Client(service.url, service.key)
    document: dict[str, Any] = client.get("/openapi.json")
    client.close()
    return document


@pytest.fixture(scope="module")
def private_ids(service: Service) -> dict[str, str]:
    """Of the first tenant's things, by the names of parameters."""
    client = Client(service.url, service.key)
    dataset = client.http.post("/datasets", files={"file": (PRIVATE, ROWS.encode())}, data={"name": PRIVATE}).json()
    request = {"name": PRIVATE, "model": "tiny", "dataset": {"id": dataset["id"]}, "resources": {"gpus": 8}}
    job = client.post("/jobs", request)
    key = client.post("/keys", {"name": PRIVATE})
    client.close()
    return {"job_id": job["id"], "dataset_id": dataset["id"], "key_id": key["id"]}


@pytest.fixture(scope="module")
def session(service: Service) -> Iterator[requests.Session]:
    """Another tenant's, with every scope."""
    engine = build_engine(service.settings, Role.API, pool_size=1)
    with build_sessions(engine).begin() as transaction:
        secret_key = service.settings.load_secret_key()
        _, value = create_key(transaction, secret_key, name="fuzz", tenant_id="fuzz", is_admin=True)
    engine.dispose()
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {value}"
        yield session


def test_operations_have_summaries_and_names_for_a_client(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]

    assert sorted(names) == sorted(set(names))
    assert [name for name in names if not name.isidentifier() or "_" not in name] == []
    assert [operation["operationId"] for operation in operations if not operation.get("summary")] == []


def test_every_json_body_and_every_error_has_an_example_that_fits(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    bodies = [operation["requestBody"]["content"] for operation in operations if "requestBody" in operation]
    media = [content["application/json"] for content in bodies if "application/json" in content]
    schemas = document["components"]["schemas"]

    found = []
    for content in media:
        schema = content["schema"]
        named = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        examples = [example["value"] for example in content.get("examples", {}).values()] or named.get("examples", [])
        found += [(schema, example) for example in examples]
        assert examples or named["title"] == "DatasetCreate"  # A reference, told by the descriptions of its fields.
    error = schemas["ErrorResponse"]

    for schema, example in [*found, (error, error["examples"][0])]:
        jsonschema.validate(example, {**schema, "components": document["components"]})
    assert len(found) >= 10


def test_every_json_answer_has_an_example_that_fits(document: dict[str, Any]) -> None:
    """Its own or its items': a page shows those."""
    schemas, found = document["components"]["schemas"], 0
    for method, path, operation in (
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ):
        for code, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/json")
            if code >= "3" or content is None:
                continue
            examples = list_examples(content, schemas)
            assert examples, (method, path)
            for schema, example in examples:
                jsonschema.validate(example, {**schema, "components": document["components"]})
                found += 1
    assert found >= 60


def list_examples(content: dict[str, Any], schemas: dict[str, Any]) -> list[tuple[dict[str, Any], Any]]:
    """With the schemas that they must fit."""
    schema = content["schema"]
    if "example" in content:
        return [(schema, content["example"])]
    found = []
    for each in schema.get("anyOf", [schema]):
        named = schemas[each["$ref"].rpartition("/")[2]]
        if "examples" not in named and "has_more" in named["properties"]:
            each = named["properties"]["data"]["items"]
            named = schemas[each["$ref"].rpartition("/")[2]]
        found += [(each, example) for example in named.get("examples", [])]
    return found


def test_no_request_breaks_the_service_or_reaches_another_tenant(
    service: Service, document: dict[str, Any], session: requests.Session, private_ids: dict[str, str]
) -> None:
    problems: list[str] = []
    load_all_checks()
    checks = CHECKS.get_by_names(CHECKS_WANTED)

    def try_out(operation: Any) -> None:
        @seed(0)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            foreign = {name: private_ids[name] for name in case.path_parameters or {} if name in private_ids}
            for parameters in (case.path_parameters, {**(case.path_parameters or {}), **foreign}):
                case.path_parameters = parameters
                response = case.call(base_url=service.url, session=session, timeout=120)
                if PRIVATE in response.text or (parameters and foreign == parameters and response.status_code < 400):
                    problems.append(f"{operation.label} shows another tenant's things: {response.text[:300]}")
                try:
                    case.validate_response(response, checks=checks)
                except FailureGroup as failures:
                    problems.append(f"{operation.label}: {failures.exceptions}"[:1500])
                if not foreign:
                    return

        send()

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok)
        try_out(result.ok())

    assert problems == []
