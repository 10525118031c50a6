"""What the database itself refuses, whoever asks."""

import importlib

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError

from jobs import invariants
from jobs.database import Role, Sessions, tenant_transaction
from jobs.ids import new_id
from jobs.models import Attempt, Event, Job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import TRANSITIONS, JobStatus
from tests.conftest import Servers
from tests.integration.rows import (
    OpenSessions,
    add_dataset,
    claim,
    submit,
)


def test_the_database_refuses_an_owner_without_a_lease(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id

    with pytest.raises(IntegrityError), worker.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_owner="w1"))
    with pytest.raises(IntegrityError), worker.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=JobStatus.SUCCEEDED))


def test_the_api_sees_no_row_without_its_tenant(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    """Row-level security alone: these statements have no filter of their own."""
    submit(api, identity, settings, add_dataset(api, identity))

    with api() as session:
        assert session.scalars(select(Job)).all() == []
    with tenant_transaction(api, "b") as session:
        assert session.scalars(select(Job)).all() == []
        assert session.execute(update(Job).values(name="taken").returning(Job.id)).all() == []
    with tenant_transaction(api, "a") as session:
        assert len(session.scalars(select(Job)).all()) == 1
    with pytest.raises(ProgrammingError), tenant_transaction(api, "a") as session:  # At the commit.
        session.add(Event(id=new_id("evt"), tenant_id="b", job_id="x", attempt=0, type="", message="", data={}))


def test_no_role_of_the_service_is_a_superuser(open_sessions: OpenSessions) -> None:
    for role in Role:
        with open_sessions(role)() as session:
            row = session.execute(
                text("SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
            ).one()
        assert tuple(row) == (role.value, False, False)


def test_a_worker_may_not_delete_and_the_api_may_not_write_metrics(
    api: Sessions, worker: Sessions, identity: Identity
) -> None:
    for sessions, statement in [
        (worker, "DELETE FROM jobs"),
        (worker, "DELETE FROM events"),
        (worker, "SELECT * FROM api_keys"),
        (api, "DELETE FROM jobs"),
        (api, "UPDATE events SET message = ''"),
        (api, "INSERT INTO adapters (job_id, tenant_id, store_key, num_bytes, sha256) VALUES ('', 'a', '', 1, '')"),
    ]:
        with pytest.raises(ProgrammingError, match="permission denied"), tenant_transaction(sessions, "a") as session:
            session.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE jobs SET status = 'running'", "cannot go from queued to running"),
        ("UPDATE jobs SET status = 'failed', finished_at = now(); UPDATE jobs SET reason = '{}'", "is final"),
        ("UPDATE jobs SET lease_epoch = lease_epoch - 1", "higher epoch"),
        (
            "UPDATE jobs SET status = 'starting', lease_owner = 'w', lease_expires_at = now(), heartbeat_at = now()",
            "higher epoch",
        ),
    ],
)
def test_the_database_refuses_what_must_not_be(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, statement: str, words: str
) -> None:
    submit(api, identity, settings, add_dataset(api, identity))

    with pytest.raises(IntegrityError, match=words), worker.begin() as session:
        session.execute(text(statement))


def test_the_database_takes_no_second_open_attempt(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    job_id = submit(api, identity, settings, add_dataset(api, identity)).id
    claim(worker)

    with pytest.raises(IntegrityError, match="uq_attempts_open"), worker.begin() as session:
        session.add(Attempt(job_id=job_id, number=2, tenant_id="a", lease_epoch=2, worker_id="w", hostname=""))


def test_the_database_knows_the_same_changes_as_the_code(servers: Servers) -> None:
    """Each of the possible changes is legal in both or in neither."""
    migration = importlib.import_module("migrations.versions.2026_11_23_0400_hold_and_review")

    legal = {old.value: tuple(sorted(new)) for old, new in TRANSITIONS.items() if new}
    assert {old: tuple(sorted(new)) for old, new in migration.LEGAL_CHANGES.items()} == legal


def test_nothing_of_all_this_breaks_a_rule_of_the_tables(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    submit(api, identity, settings, dataset_id)
    claim(worker)
    with worker.begin() as session:
        assert invariants.find_violations(session) == []
        session.execute(text("UPDATE attempts SET worker_id = 'somebody else'"))
        rules = [violation.rule for violation in invariants.find_violations(session)]
    assert rules == ["a job that has an owner has an open attempt of that owner and epoch"]
