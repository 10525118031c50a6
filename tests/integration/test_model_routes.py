"""Base models are registered over HTTP, by admins, and usage is told, by keys and tenants."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.app import create_app
from jobs import audit_log
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, tenant_transaction
from jobs.model_registry import get_model
from jobs.models import Attempt
from jobs.repository import Identity
from jobs.scopes import Scope
from jobs.settings import Settings
from tests.factories import create_model_folder
from tests.hub_server import COMMIT
from tests.integration.rows import OpenSessions, add_dataset

ADMIN = {"Authorization": "Bearer a-bootstrap-key-of-a-test"}


@pytest.fixture
def site(settings: Settings) -> Settings:
    key = SecretStr(ADMIN["Authorization"].split()[1])
    return settings.model_copy(update={"models_file": settings.home / "models.toml", "bootstrap_key": key})


@pytest.fixture
def api_client(site: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(site), base_url="http://127.0.0.1", headers=ADMIN) as client:
        yield client


@pytest.fixture
def add_tenants_key(api: Sessions, settings: Settings) -> Any:
    """The header of a new key, and who it is."""

    def add(tenant: str, *scopes: Scope) -> tuple[dict[str, str], Identity]:
        with api.begin() as session:
            secret_key = settings.load_secret_key()
            key, value = create_key(session, secret_key, name="of a test", tenant_id=tenant, scopes=frozenset(scopes))
            return {"Authorization": f"Bearer {value}"}, Identity(key.id, tenant, is_admin=False)

    return add


def test_a_model_is_registered_and_jobs_may_name_it_at_once(
    api_client: TestClient, site: Settings, api: Sessions, identity: Identity, add_tenants_key: Any
) -> None:
    assert site.models_dir is not None
    folder = create_model_folder(site.models_dir / ".kept" / "large")

    entry = {"id": "org/large", "source": str(folder), "chat_template": "alpaca"}
    created, again = (api_client.post("/models", json=entry, headers={"Idempotency-Key": "1"}) for _ in range(2))
    headers, member = add_tenants_key("a", Scope.JOBS_READ, Scope.JOBS_WRITE)
    body = {"model": "org/large", "dataset": {"id": add_dataset(api, identity)}}
    job = api_client.post("/jobs", headers=headers, json=body)

    model = created.json()
    assert (created.status_code, again.status_code, again.json()) == (201, 201, model)
    assert (model["id"], model["source"], model["trainable"], model["is_local"]) == ("org/large", "folder", True, True)
    assert model["digest"].startswith("sha256:")
    assert api_client.get("/models/org/large").json() == model
    assert job.status_code == 201, job.text
    assert get_model(site, "org/large").chat_template == "alpaca"  # As a worker sees it.
    with tenant_transaction(api, "default") as session:
        entries = audit_log.list_entries(session, after=0, limit=10)
    assert [(e.action, e.object_id, e.result) for e in entries] == [("create_model", "org/large", "ok")]
    assert member.tenant_id == "a"


def test_a_hubs_model_is_registered_by_its_commit(api_client: TestClient) -> None:
    model = api_client.post("/models", json={"id": "b", "source": "org/b", "revision": COMMIT}).json()

    assert (model["source"], model["revision"], model["is_local"]) == ("hub", COMMIT, False)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"id": "tiny", "source": "org/b", "revision": COMMIT}, 409, "model_exists", "id"),
        ({"source": "/etc"}, 422, "source_outside_models_dir", "source"),
        ({"source": "MODELS/../x"}, 422, "source_outside_models_dir", "source"),
        ({"source": "MODELS/nothing"}, 422, "source_not_found", "source"),
        ({"source": "MODELS/tiny", "revision": COMMIT}, 422, "revision_of_a_folder", "revision"),
        ({"source": "MODELS/pickled"}, 422, "model_weights_pickle", "source"),
        ({"source": "https://evil.test/x"}, 422, "source_invalid", "source"),
        ({"source": "org/../x", "revision": COMMIT}, 422, "source_invalid", "source"),
        ({"trust_remote_code": True}, 422, "unknown_field", "trust_remote_code"),
        ({"id": "../x"}, 422, "invalid_field", "id"),
        ({"chat_template": "chatml"}, 422, "invalid_field", "chat_template"),
    ],
)
def test_what_cannot_be_registered_is_refused_and_leaves_nothing(
    api_client: TestClient, site: Settings, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    assert site.models_dir is not None
    pickled = create_model_folder(site.models_dir / "pickled")
    (pickled / "model.safetensors").rename(pickled / "model.bin")
    body = {"id": "b", "source": "org/b", **body}
    body["source"] = body["source"].replace("MODELS", str(site.models_dir))

    answer = api_client.post("/models", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert site.models_file is not None
    assert not site.models_file.exists()


def test_only_admins_register_and_only_where_there_is_a_file(
    api_client: TestClient, settings: Settings, site: Settings, add_tenants_key: Any, tmp_path: Path
) -> None:
    headers, _ = add_tenants_key("a", *(set(Scope) - {Scope.ADMIN}))
    body = {"id": "b", "source": "org/b", "revision": COMMIT}
    refused = api_client.post("/models", headers=headers, json=body)
    assert site.models_file is not None
    site.models_file.mkdir()  # Nobody can write there.
    unwritable = api_client.post("/models", json=body)
    api_client.app.state.services.settings.models_file = None  # type: ignore[attr-defined]
    unset = api_client.post("/models", json=body)

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert (unwritable.status_code, unwritable.json()["error"]["code"]) == (409, "models_file_invalid")
    assert (unset.status_code, unset.json()["error"]["code"]) == (409, "models_file_not_set")
    assert "MEDTUNE_MODELS_FILE" in unset.json()["error"]["details"]["remedy"]


# --- Usage ---


def test_usage_is_the_own_tenants_and_by_key_the_own_key_only(
    api_client: TestClient, api: Sessions, open_sessions: OpenSessions, identity: Identity, add_tenants_key: Any
) -> None:
    dataset_id = add_dataset(api, identity)
    worker = open_sessions(Role.WORKER)
    member, who = add_tenants_key("a", Scope.JOBS_READ, Scope.JOBS_WRITE)
    manager, _ = add_tenants_key("a", Scope.JOBS_READ, Scope.KEYS_MANAGE)
    other, _ = add_tenants_key("b", Scope.JOBS_READ)
    blind, _ = add_tenants_key("a", Scope.DATASETS_READ)
    colleague, _ = add_tenants_key("a", Scope.JOBS_READ, Scope.JOBS_WRITE)
    for headers, team in ((member, "one"), (colleague, "two")):
        body = {"model": "tiny", "dataset": {"id": dataset_id}, "metadata": {"team": team}}
        job = api_client.post("/jobs", headers=headers, json=body).json()
        with worker.begin() as session:
            common = {"tenant_id": "a", "lease_epoch": 1, "worker_id": "w", "hostname": "h"}
            session.add(Attempt(job_id=job["id"], number=1, **common))

    def read(headers: dict[str, str], **query: str) -> dict[str, Any]:
        answer: dict[str, Any] = api_client.get("/usage", headers=headers, params=query).json()
        return answer

    assert [(group["value"], group["name"]) for group in read(member)["data"]] == [(who.key_id, "of a test")]
    assert len(read(manager)["data"]) == 2
    assert {group["value"] for group in read(member, group_by="tag:team")["data"]} == {"one", "two"}
    assert read(member, group_by="model")["total"]["jobs"] == 2
    assert read(other)["data"] == read(other, group_by="tag:team")["data"] == []
    assert read(blind)["error"]["code"] == "missing_scope"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"since": "2026-01-02T00:00:00"}, "since"),
        ({"until": "0001-01-01T00:00:00Z"}, "since"),
        ({"group_by": "tag:"}, "group_by"),
        ({"group_by": "tenant"}, "group_by"),
    ],
)
def test_times_and_groups_that_cannot_be_are_refused(api_client: TestClient, query: dict[str, str], param: str) -> None:
    answer = api_client.get("/usage", params=query)

    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), json.dumps(answer.json())
