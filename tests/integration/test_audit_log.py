"""Every act leaves one entry in a chain that nobody can change unseen."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from cli.main import build_app
from cli.serve import Service
from jobs import audit_log
from jobs.database import Role, Sessions, build_engine, build_sessions, tenant_transaction
from tests.factories import submit_script, upload_script, wait_for_status
from tests.integration.rows import OpenSessions
from tests.plain_client import Client

NUM_THREADS, NUM_EACH = 6, 20


@pytest.fixture
def owner(open_sessions: OpenSessions) -> Sessions:
    return open_sessions(None)


@pytest.fixture
def open_service_owner(service: Service) -> Iterator[Sessions]:
    engine = build_engine(service.settings, None, pool_size=1)
    yield build_sessions(engine)
    engine.dispose()


def add(api: Sessions, tenant_id: str = "a", object_id: str = "job_1", **data: Any) -> None:
    with tenant_transaction(api, tenant_id) as session:
        audit_log.record(session, tenant_id=tenant_id, actor="key_1", action="cancel_job", object_id=object_id, **data)


def find_problems(worker: Sessions, known_hash: str | None = None) -> list[str | None]:
    with worker() as session:
        return [chain.problem for chain in audit_log.verify_chains(session, known_hash)]


def read_log(service: Service, part: str) -> str:
    return (service.settings.home / "logs" / f"{part}.log").read_text()


def read_entries(client: Client) -> list[tuple[str, str | None, str]]:
    found: list[dict[str, Any]] = []
    for page in client.follow("/audit"):
        found += page
    return [(entry["action"], entry["object_id"], entry["result"]) for entry in found]


def test_every_act_and_every_refusal_is_recorded_and_a_reader_who_polls_once(
    other_tenant: Client, tmp_path: Path
) -> None:
    client = other_tenant
    dataset_id = upload_script(client, tmp_path, steps=1)
    job_id = client.post("/jobs", {"model": "tiny", "dataset": {"id": dataset_id}})["id"]
    wait_for_status(client, job_id, "succeeded")
    for _ in range(3):
        client.get(f"/jobs/{job_id}/logs")
    client.download_adapter(job_id, tmp_path / "adapter.tar.gz")
    refused = client.http.post(f"/jobs/{job_id}/cancel")
    client.http.post("/jobs", json={"model": "none", "dataset": {"id": dataset_id}})
    client.http.post("/jobs/job_%00none/cancel")
    client.post("/jobs", {"model": "tiny", "dataset": {"id": dataset_id}}, dry_run=True)
    retried = client.post(f"/jobs/{job_id}/retry", {})["id"]
    client.http.delete(f"/datasets/{dataset_id}")

    assert refused.status_code == 409
    assert read_entries(client) == [
        ("create_dataset", dataset_id, "ok"),
        ("create_job", job_id, "ok"),
        ("list_logs", job_id, "ok"),
        ("download_adapter", job_id, "ok"),
        ("cancel_job", job_id, refused.json()["error"]["code"]),
        ("create_job", None, "model_not_found"),
        ("retry_final_job", retried, "ok"),
        ("delete_dataset", dataset_id, "dataset_in_use"),
    ]


def test_a_refused_upload_leaves_an_entry_like_every_other_refusal(other_tenant: Client) -> None:
    http = other_tenant.http
    row = b'{"instruction": "a", "response": "b"}\n'
    http.post("/datasets", data={"name": "no file"})
    http.post("/datasets", files={"file": row}, data={"colour": "blue"})
    http.post("/datasets", files={"file": b"\x00\x01\x02"})
    http.post("/datasets", files={"file": row}, data={"phi_policy": "off"})
    http.post("/datasets", files={"file": row * (5 << 20 >> 5)})
    http.post("/datasets", content=b"no form", headers={"Content-Type": "multipart/form-data"})

    assert read_entries(other_tenant) == [
        ("create_dataset", None, code)
        for code in (
            "file_missing",
            "unknown_field",
            "unsupported_file_type",
            "attestation_incomplete",
            "http_413",
            "http_400",
        )
    ]


def test_a_request_that_is_not_what_the_route_takes_is_recorded_as_refused_and_not_as_done(
    other_tenant: Client,
) -> None:
    other_tenant.http.post("/reviews/rev_none/approve", json={"colour": "blue"})
    other_tenant.http.post("/jobs", json={"model": 1})

    assert read_entries(other_tenant) == [
        ("approve_review", "rev_none", "invalid_field"),
        ("create_job", None, "invalid_field"),
    ]


def test_who_reads_reviews_is_recorded(other_tenant: Client) -> None:
    for _ in range(2):
        other_tenant.get("/reviews")
        other_tenant.get("/reviews", job="job_1")
    other_tenant.http.get("/reviews/rev_none")

    assert read_entries(other_tenant) == [
        ("list_reviews", None, "ok"),
        ("list_reviews", "job_1", "ok"),
        ("get_review", "rev_none", "review_not_found"),
    ]


def test_a_sign_in_is_recorded_and_without_a_valid_key_nobody_adds_an_entry_nor_a_line_of_log_each(
    service: Service, other_tenant: Client, open_service_owner: Sessions
) -> None:
    def count_entries() -> int:
        with open_service_owner() as session:
            return session.scalar(text("SELECT count(*) FROM audit_entries")) or 0

    def sign_in(key: str) -> int:
        headers = {"Sec-Fetch-Site": "same-origin"}
        return httpx.post(f"{service.url}/dashboard/sign-in", data={"key": key}, headers=headers).status_code

    assert sign_in(other_tenant.http.headers["Authorization"].removeprefix("Bearer ")) == httpx.codes.SEE_OTHER
    assert read_entries(other_tenant) == [("sign_in", None, "ok")]

    num_entries = count_entries()
    for number in range(20):
        assert sign_in(f"mt_guess{number}") == httpx.codes.UNAUTHORIZED
        answer = httpx.post(f"{service.url}/datasets", headers={"Authorization": f"Bearer mt_guess{number}"})
        assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert count_entries() == num_entries
    told = [line for line in read_log(service, "api").splitlines() if "no valid API key" in line]
    assert 1 <= len(told) < 20
    assert not any("guess" in line for line in told)


def test_a_tenant_reads_its_own_entries_only(client: Client, other_tenant: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path)

    assert ("create_job", job_id, "ok") in read_entries(client)
    assert read_entries(other_tenant) == []


def test_entries_of_many_at_once_have_no_gap_and_one_that_is_rolled_back_leaves_none(
    api: Sessions, worker: Sessions
) -> None:
    def add_many() -> None:
        for number in range(NUM_EACH):
            add(api, object_id=f"job_{number}")

    threads = [threading.Thread(target=add_many) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    with tenant_transaction(api, "a") as session:
        audit_log.record(session, tenant_id="a", actor="key_1", action="cancel_job", object_id="rolled back")
        session.rollback()
    for thread in threads:
        thread.join()

    with worker() as session:
        chains = list(audit_log.verify_chains(session))
        objects = {entry.object_id for entry in audit_log.iter_entries(session)}
    assert [(chain.num_entries, chain.problem) for chain in chains] == [(NUM_THREADS * NUM_EACH, None)]
    assert "rolled back" not in objects


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET actor = 'somebody else'",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "INSERT INTO audit_entries (tenant_id, seq, actor, action, result, data) VALUES ('a', 9, '', '', '', '{}')",
        "UPDATE audit_heads SET seq = 0",
        "DELETE FROM audit_heads",
    ],
)
def test_no_part_of_the_service_may_change_or_delete_entries(
    open_sessions: OpenSessions, worker: Sessions, statement: str
) -> None:
    add(open_sessions(Role.API))

    for role in Role:
        with tenant_transaction(open_sessions(role), "a") as session, session.begin_nested() as savepoint:
            with pytest.raises(DBAPIError, match="permission denied"):
                session.execute(text(statement))
            savepoint.rollback()

    assert find_problems(worker) == [None]


@pytest.mark.parametrize("statement", ["UPDATE audit_entries SET actor = ''", "DELETE FROM audit_entries"])
def test_not_even_the_owner_changes_entries_by_accident(api: Sessions, owner: Sessions, statement: str) -> None:
    add(api)

    with pytest.raises(DBAPIError, match="never changed or deleted"), owner.begin() as session:
        session.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit_entries SET actor = 'x' WHERE seq = 2", "entry 2: its columns are not what its record says"),
        (
            "UPDATE audit_entries SET actor = 'x', record = replace(record, 'key_1', 'x') WHERE seq = 2",
            "entry 2: its hash is not that of its record",
        ),
        (
            "UPDATE audit_entries SET record = record || ' ', "
            "hash = sha256(previous_hash || convert_to(record || ' ', 'UTF8')) WHERE seq = 2",
            "entry 3: it does not follow the one before",
        ),
        *(
            (
                f"UPDATE audit_entries SET record = '{record}', "
                f"hash = sha256(previous_hash || convert_to('{record}', 'UTF8')) WHERE seq = 2",
                "entry 2: its record is not one that the service writes",
            )
            for record in ("x", "[]", "{}")
        ),
        ("DELETE FROM audit_entries WHERE seq = 2", "entry 2: it is missing, the next one is 3"),
        ("DELETE FROM audit_entries WHERE seq = 4", "it ends with entry 3, and its head says 4"),
        ("DELETE FROM audit_heads", "its head is missing"),
    ],
)
def test_what_somebody_with_every_right_changed_is_found(
    api: Sessions, worker: Sessions, owner: Sessions, statement: str, problem: str
) -> None:
    for number in range(4):
        add(api, object_id=f"job_{number}")
    add(api, tenant_id="b")

    with owner.begin() as session:
        session.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER keep"))
        session.execute(
            text(statement + (" WHERE tenant_id = 'a'" if "heads" in statement else " AND tenant_id = 'a'"))
        )

    assert sorted(find_problems(worker), key=str) == sorted([problem, None], key=str)


def test_a_chain_that_was_cut_and_continued_lacks_a_hash_noted_before(
    api: Sessions, worker: Sessions, owner: Sessions
) -> None:
    add(api)
    add(api)
    with worker() as session:
        noted = next(audit_log.verify_chains(session)).hash
    assert find_problems(worker, noted) == [None]

    with owner.begin() as session:
        session.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER keep"))
        session.execute(text("DELETE FROM audit_entries WHERE seq = 2"))
        session.execute(text("UPDATE audit_heads SET seq = 1, hash = (SELECT hash FROM audit_entries)"))
    add(api)

    assert find_problems(worker) == [None]
    assert find_problems(worker, noted) == [None, f"no entry has the hash {noted}"]


def test_the_command_line_verifies_and_lists(
    service: Service, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit_script(client, tmp_path)
    monkeypatch.setattr("cli.audit.get_operator_settings", lambda: service.settings)
    runner, app = CliRunner(), build_app("audit")

    verified = runner.invoke(app, ["audit", "verify"])
    listed = runner.invoke(app, ["audit", "list", "--object", job_id])
    unknown = runner.invoke(app, ["audit", "verify", "--contains", "00"])

    assert verified.exit_code == 0, verified.output
    assert "default: " in verified.output
    assert f'"object_id": "{job_id}"' in listed.output
    assert unknown.exit_code == 1
    assert "no entry has the hash 00" in unknown.output


def test_an_act_whose_entry_cannot_be_written_is_not_done(
    service: Service, client: Client, tmp_path: Path, open_service_owner: Sessions
) -> None:
    job_id = submit_script(client, tmp_path, steps=1000, step_seconds=0.1)
    with open_service_owner.begin() as session:
        session.execute(text("ALTER TABLE audit_heads RENAME TO audit_heads_away"))
    try:
        answer = client.http.post(f"/jobs/{job_id}/cancel")
    finally:
        with open_service_owner.begin() as session:
            session.execute(text("ALTER TABLE audit_heads_away RENAME TO audit_heads"))

    assert answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert client.get(f"/jobs/{job_id}")["cancel_requested_at"] is None
    client.post(f"/jobs/{job_id}/cancel")
