"""Requests that create something and come twice, by way of real API processes."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from cli.serve import MEDTUNE, Service, build_environment, find_free_port
from jobs import idempotency
from jobs.database import Sessions, tenant_transaction
from jobs.idempotency import Sending
from jobs.models import IdempotencyKey
from jobs.repository import Identity
from tests.factories import read_all, upload_script, wait_for_status, wait_until
from tests.integration.rows import OpenSessions
from tests.plain_client import Client

ROWS = b'{"instruction": "q", "response": "a"}\n'


@pytest.fixture
def body(client: Client, tmp_path: Path) -> dict[str, Any]:
    """Of a job with a label of its own."""
    dataset_id = upload_script(client, tmp_path)
    return {"model": "tiny", "dataset": {"id": dataset_id}, "metadata": {"of": dataset_id}}


def list_jobs(client: Client, body: dict[str, Any]) -> list[str]:
    """The ids of those that were made of the body."""
    return [job["id"] for job in client.get("/jobs", **{"metadata[of]": body["metadata"]["of"]})["data"]]


def test_fifty_at_once_make_one_job_and_hear_the_same(service: Service, client: Client, body: dict[str, Any]) -> None:
    barrier = threading.Barrier(50)
    headers = {"Authorization": f"Bearer {service.key}", "Idempotency-Key": f"fifty {body['metadata']['of']}"}

    def post(_: int) -> httpx.Response:
        with httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=300) as http:
            barrier.wait(timeout=300)
            return http.post("/jobs", json=body)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))

    assert {(answer.status_code, answer.text) for answer in answers} == {(201, answers[0].text)}
    assert list_jobs(client, body) == [answers[0].json()["id"]]


def test_an_answer_is_repeated_as_it_was(client: Client, body: dict[str, Any]) -> None:
    """However far the job went meanwhile, and whatever it was made by."""
    headers = {"Idempotency-Key": f"again {body['metadata']['of']}"}
    first = client.http.post("/jobs", json=body, headers=headers)
    job_id = first.json()["id"]
    client.post(f"/jobs/{job_id}/cancel")
    wait_for_status(client, job_id, "cancelled", seconds=300)
    retry_headers = {"Idempotency-Key": f"retry {job_id}"}

    retries = [client.http.post(f"/jobs/{job_id}/retry", json={}, headers=retry_headers) for _ in range(2)]
    other = client.http.post(f"/jobs/{job_id}/retry", json={"name": "x"}, headers=retry_headers)

    assert client.http.post("/jobs", json=body, headers=headers).text == first.text
    assert retries[0].text == retries[1].text
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert len(list_jobs(client, body)) == 2
    about_it = [e for e in read_all(client, "/audit") if e["object_id"] in (retries[0].json()["id"], job_id)]
    assert [e["action"] for e in about_it if e["result"] == "ok"] == ["create_job", "cancel_job", "retry_final_job"]


def test_a_dataset_is_uploaded_once(client: Client, service: Service, tmp_path: Path) -> None:
    headers = {"Idempotency-Key": f"upload {tmp_path}"}
    files = {"file": ("rows.jsonl", ROWS)}

    first, again = (client.http.post("/datasets", files=files, headers=headers) for _ in range(2))
    folders = set(Path(service.settings.store_location, "datasets").iterdir())
    other_rows = client.http.post("/datasets", files={"file": ("rows.jsonl", ROWS * 2)}, headers=headers)
    other_name = client.http.post("/datasets", files=files, data={"name": "other"}, headers=headers)

    assert (first.status_code, again.status_code, again.text) == (201, 201, first.text)
    for answer in (other_rows, other_name):
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    left = {folder for folder in Path(service.settings.store_location, "datasets").iterdir() if any(folder.iterdir())}
    assert left <= folders


def test_a_key_is_made_once_and_only_who_made_it_hears_its_value_again(
    client: Client, service: Service, tmp_path: Path
) -> None:
    headers, body = {"Idempotency-Key": f"key {tmp_path}"}, {"name": str(tmp_path)}
    admin = client.post("/keys", {"name": "admin", "scopes": ["admin"]})["value"]
    first, again = (client.http.post("/keys", json=body, headers=headers) for _ in range(2))
    hers = client.http.post("/keys", json=body, headers=headers | {"Authorization": f"Bearer {admin}"})

    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert (hers.status_code, hers.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert [key["id"] for key in client.get("/keys")["data"] if key["name"] == body["name"]] == [first.json()["id"]]
    value = first.json()["value"]
    assert httpx.get(f"{service.url}/jobs", headers={"Authorization": f"Bearer {value}"}).status_code == 200
    assert value != client.http.post("/keys", json=body).json()["value"]


def test_webhooks_and_test_messages_are_made_once(client: Client, colleague: Client, tmp_path: Path) -> None:
    headers = {"Idempotency-Key": f"once {tmp_path}"}
    hook = {"url": f"https://93.184.216.34{tmp_path}", "jobs": "named"}
    first, again = (client.http.post("/webhooks", json=hook, headers=headers) for _ in range(2))
    hers = colleague.http.post("/webhooks", json=hook, headers=headers)
    path = f"/webhooks/{first.json()['id']}"
    test_headers = {"Idempotency-Key": f"test {tmp_path}"}
    messages = [client.http.post(f"{path}/test", headers=test_headers) for _ in range(2)]
    rotated = client.post(f"{path}/rotate")["secret"]

    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert (hers.status_code, hers.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert first.json()["secret"] != rotated
    assert (messages[0].status_code, messages[1].json()) == (202, messages[0].json())
    assert len(client.get(f"{path}/deliveries")["data"]) == 1
    client.http.delete(path)


def test_a_refused_request_leaves_its_key_free(client: Client, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": f"refused {body['metadata']['of']}"}

    refused = client.http.post("/jobs", json={**body, "model": "none"}, headers=headers)

    assert refused.json()["error"]["code"] == "model_not_found"
    assert client.http.post("/jobs", json=body, headers=headers).status_code == 201


def test_what_a_client_sends_again_by_itself_makes_no_second_job(
    client: Client, colleague: Client, body: dict[str, Any]
) -> None:
    def post(by: Client, count: int) -> str:
        return str(by.http.post("/jobs", json=body, headers={"x-stainless-retry-count": str(count)}).json()["id"])

    first, again, once_more = post(client, 0), post(client, 1), post(client, 2)
    wanted_twice = post(client, 0)
    hers = post(colleague, 1)
    hers_late = post(colleague, 0)
    """Its retry was quicker."""

    assert first == again == once_more
    assert len({first, wanted_twice, hers}) == 3
    assert hers_late == hers
    assert sorted(list_jobs(client, body)) == sorted([first, wanted_twice, hers])


def test_a_job_that_was_stored_before_the_api_was_killed_is_the_answer_to_the_next_try(
    client: Client, service: Service, body: dict[str, Any]
) -> None:
    """Nobody read the first answer."""
    headers = {"Idempotency-Key": f"killed {body['metadata']['of']}", "Authorization": f"Bearer {service.key}"}
    with run_api(service) as (url, process):
        request = httpx.Request("POST", f"{url}/jobs", json=body, headers=headers)
        with httpx.Client(trust_env=False, timeout=300) as http:
            http.send(request, stream=True)
            (stored,) = wait_until(lambda: list_jobs(client, body), seconds=300)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)

    again = client.http.post("/jobs", json=body, headers=headers)

    assert (again.status_code, again.json()["id"]) == (201, stored)
    assert list_jobs(client, body) == [stored]


@contextmanager
def run_api(service: Service) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Another API process of the service."""
    settings = service.settings.model_copy(update={"port": find_free_port("127.0.0.1")})
    with subprocess.Popen([*MEDTUNE, "api"], env=os.environ | build_environment(settings)) as process:
        try:
            url = f"http://127.0.0.1:{settings.port}"
            wait_until(lambda: answers(f"{url}/readyz"), seconds=300, every=0.1)
            yield url, process
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_key_answers_for_a_day(
    api: Sessions, worker: Sessions, open_sessions: OpenSessions, identity: Identity
) -> None:
    def send(seconds: float = 0) -> str | None:
        with open_sessions(None).begin() as session:
            session.execute(update(IdempotencyKey).values(created_at=func.now() - timedelta(seconds=seconds)))
        with tenant_transaction(api, identity.tenant_id) as session:
            first = idempotency.claim(session, identity, Sending("POST /x", key="k"), "{}")
            if first.answer is None:
                first.keep("made")
            return first.answer

    day = idempotency.KEPT.total_seconds()
    assert [send(), send(), send(day - 3600), send(day + 60), send()] == [None, "made", "made", None, "made"]
    assert send(day + 60) is None
    with worker.begin() as session:
        idempotency.forget_old_keys(session)
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 1
    with open_sessions(None).begin() as session:
        session.execute(update(IdempotencyKey).values(created_at=func.now() - timedelta(seconds=day + 3600)))
    with worker.begin() as session:
        idempotency.forget_old_keys(session)
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 0
