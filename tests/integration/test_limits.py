"""An API with limits that are soon reached."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.api_keys import create_key
from jobs.database import Role, build_engine, build_sessions
from jobs.settings import Settings

ROWS = b'{"instruction": "q", "response": "a"}\n'


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"reads_per_second": 0.3, "writes_per_second": 0.3, "failures_per_minute": 2, "tenant_max_queued": 2}
    )


@pytest.fixture
def api(limited: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(limited), base_url="http://127.0.0.1") as api:
        yield api


def make_key(settings: Settings, *, is_admin: bool = False, max_storage_bytes: int | None = None) -> dict[str, str]:
    engine = build_engine(settings, Role.API, pool_size=1)
    with build_sessions(engine).begin() as session:
        secret_key = settings.load_secret_key()
        _, value = create_key(session, secret_key, name="test", is_admin=is_admin, max_storage_bytes=max_storage_bytes)
    engine.dispose()
    return {"Authorization": f"Bearer {value}"}


def read(response: Any) -> tuple[int, str]:
    assert int(response.headers["retry-after"]) >= 1
    return response.status_code, response.json()["error"]["code"]


def test_a_key_that_asks_too_often_is_told_when_to_come_back(api: TestClient, limited: Settings) -> None:
    key, other, admin = make_key(limited), make_key(limited), make_key(limited, is_admin=True)
    for _ in range(3):
        assert api.get("/jobs", headers=key).status_code == 200

    assert read(api.get("/jobs", headers=key)) == (429, "rate_limit_reached")
    assert api.post("/jobs/job_none/cancel", headers=key).status_code == 404
    assert api.get("/jobs", headers=other).status_code == 200
    assert [api.get("/jobs", headers=admin).status_code for _ in range(5)] == [200] * 5


def test_an_address_with_many_wrong_keys_waits_and_good_keys_go_on(api: TestClient, limited: Settings) -> None:
    admin, late = make_key(limited, is_admin=True), make_key(limited)
    assert api.get("/jobs", headers=admin).status_code == 200
    wrong = [api.get("/jobs", headers={"Authorization": f"Bearer mt_{n}"}) for n in range(5)]

    assert [response.status_code for response in wrong] == [401] * 4 + [429]
    assert read(wrong[-1]) == (429, "too_many_failures")
    assert api.get("/jobs", headers=admin).status_code == 200
    assert read(api.get("/jobs", headers=late)) == (429, "too_many_failures")
    assert api.get("/jobs").status_code == 401  # Nothing was looked up.


def test_jobs_of_a_tenant_wait_up_to_its_limit(api: TestClient, limited: Settings, tmp_path: Path) -> None:
    keys = [make_key(limited, is_admin=True) for _ in range(2)]
    dataset = api.post("/datasets", headers=keys[0], files={"file": ("rows.jsonl", ROWS)}).json()["id"]
    body = {"model": "tiny", "dataset": {"id": dataset}}
    made = [api.post("/jobs", headers=keys[n], json=body) for n in (0, 1, 0)]

    assert [response.status_code for response in made] == [201, 201, 429]
    assert read(made[-1]) == (429, "queue_limit_reached")


def test_datasets_of_a_key_take_no_more_than_its_limit(api: TestClient, limited: Settings) -> None:
    key = make_key(limited, is_admin=True, max_storage_bytes=2 * len(ROWS))
    sent = [api.post("/datasets", headers=key, files={"file": ("rows.jsonl", ROWS)}) for _ in range(3)]

    assert [response.status_code for response in sent] == [201, 201, 429]
    assert read(sent[-1]) == (429, "storage_limit_reached")
    stored = {path.parent.name for path in Path(limited.store_location).rglob("data")}
    assert stored == {response.json()["id"] for response in sent[:2]}
    assert api.delete(f"/datasets/{sent[0].json()['id']}", headers=key).status_code == 200
    assert api.post("/datasets", headers=key, files={"file": ("rows.jsonl", ROWS)}).status_code == 201


def test_what_an_upload_in_parts_announces_counts_as_stored_and_once(api: TestClient, limited: Settings) -> None:
    key = make_key(limited, is_admin=True, max_storage_bytes=2 * len(ROWS))
    whole = {"bytes": 2 * len(ROWS), "filename": "rows.jsonl", "mime_type": "", "purpose": "fine-tune"}
    begun = api.post("/v1/uploads", headers=key, json=whole).json()["id"]

    refused = api.post("/v1/uploads", headers=key, json=whole | {"bytes": 1})
    dataset = api.post("/datasets", headers=key, files={"file": ("rows.jsonl", ROWS)})
    parts = [api.post(f"/v1/uploads/{begun}/parts", headers=key, files={"data": ROWS}).json()["id"] for _ in range(2)]
    completed = api.post(f"/v1/uploads/{begun}/complete", headers=key, json={"part_ids": parts})

    assert read(refused) == (429, "storage_limit_reached")
    assert refused.json()["error"]["param"] == "bytes"
    assert read(dataset) == (429, "storage_limit_reached")
    assert (completed.status_code, completed.json()["status"]) == (200, "completed")
    assert api.delete(f"/v1/files/{completed.json()['file']['id']}", headers=key).status_code == 200
    again = api.post("/v1/uploads", headers=key, json=whole).json()["id"]
    assert api.post(f"/v1/uploads/{again}/cancel", headers=key).status_code == 200
    assert api.post("/datasets", headers=key, files={"file": ("rows.jsonl", ROWS)}).status_code == 201
