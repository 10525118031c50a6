"""Who may have a merged model, and what becomes of a merge whose worker dies, stops, or loses it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.database import Sessions, tenant_transaction
from jobs.errors import Conflict, LeaseLost
from jobs.lifecycle.exports import MAX_TRIES
from jobs.models import Adapter, Export
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import AdapterState, ExportStatus
from jobs.store import StoreWriter
from tests.factories import submit_script, wait_for_status
from tests.integration.rows import add_dataset, claim, submit
from tests.plain_client import ApiError, Client


def ask(api: Sessions, identity: Identity, job_id: str) -> ExportStatus:
    with tenant_transaction(api, identity.tenant_id) as session:
        return lifecycle.request_export(session, identity, job_id).status


def take(worker: Sessions, owner: str, seconds: float = 60) -> str | None:
    with worker.begin() as session:
        export = lifecycle.claim_export(session, owner, seconds)
        return None if export is None else export.job_id


def read(worker: Sessions, job_id: str) -> Export:
    with worker() as session:
        return repository.get_export(session, job_id)


def write_archive() -> StoreWriter:
    written = StoreWriter(io.BytesIO())
    written.write(b"weights")
    return written


def change(api: Sessions, job_id: str, state: AdapterState) -> None:
    with tenant_transaction(api, "a") as session:
        session.execute(update(Adapter).where(Adapter.job_id == job_id).values(state=state))


@pytest.fixture
def candidate(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> str:
    """A job with an adapter that nobody approved."""
    submit(api, identity, settings, add_dataset(api, identity))
    job, lease = claim(worker)
    adapter = Adapter(
        job_id=job.id, tenant_id="a", name=None, model="tiny", store_key="x", num_bytes=1, sha256="", provenance={}
    )
    with worker.begin() as session:
        lifecycle.succeed(session, lease, adapter, {"ok": True})
    return job.id


@pytest.fixture
def job_id(api: Sessions, candidate: str) -> str:
    """Of a job with an approved adapter."""
    change(api, candidate, AdapterState.APPROVED)
    return candidate


def test_an_export_is_one_however_often_it_is_asked_for(
    api: Sessions, worker: Sessions, identity: Identity, job_id: str
) -> None:
    assert ask(api, identity, job_id) == ask(api, identity, job_id) == ExportStatus.MERGING
    with worker() as session:
        assert repository.count_waiting_work(session, 5) == 1  # So a worker is rung for.

    assert take(worker, "one") == job_id
    assert take(worker, "two") is None
    with worker.begin() as session:
        lifecycle.finish_export(session, job_id, "one", "exports/x.tar", write_archive())

    assert ask(api, identity, job_id) == ExportStatus.READY
    assert read(worker, job_id).num_bytes == len(b"weights")
    assert take(worker, "two") is None


def test_what_a_dead_worker_began_is_begun_again_and_given_up_after_some_tries(
    api: Sessions, worker: Sessions, identity: Identity, job_id: str
) -> None:
    ask(api, identity, job_id)
    for number in range(MAX_TRIES):
        assert take(worker, str(number), seconds=-1) == job_id  # Its lease is over at once.
    assert take(worker, "late") is None

    found = read(worker, job_id)
    assert (found.status, (found.reason or {})["code"]) == (ExportStatus.FAILED, "merge_gave_up")
    assert ask(api, identity, job_id) == ExportStatus.MERGING
    assert take(worker, "again") == job_id


def test_a_worker_that_stops_gives_the_merge_back_and_one_that_lost_it_writes_nothing(
    api: Sessions, worker: Sessions, identity: Identity, job_id: str
) -> None:
    ask(api, identity, job_id)
    take(worker, "one")
    with worker.begin() as session:
        lifecycle.release_export(session, job_id, "one")
    assert read(worker, job_id).tries == 0
    assert take(worker, "two") == job_id

    acts: list[Callable[[Session], None]] = [
        lambda s: lifecycle.renew_export(s, job_id, "one", 60),
        lambda s: lifecycle.finish_export(s, job_id, "one", "exports/x.tar", write_archive()),
        lambda s: lifecycle.fail_export(s, job_id, "one", {"code": "x", "message": "x", "remedy": "x"}),
    ]
    for act in acts:
        with pytest.raises(LeaseLost), worker.begin() as session:
            act(session)
    assert read(worker, job_id).status == ExportStatus.MERGING


def test_a_merge_of_a_deleted_job_is_lost(api: Sessions, worker: Sessions, identity: Identity, job_id: str) -> None:
    ask(api, identity, job_id)
    take(worker, "one")
    with tenant_transaction(api, "a") as session:
        deletion = lifecycle.delete_job(session, identity, job_id)

    assert f"exports/{job_id}" in deletion.store_folders
    with pytest.raises(LeaseLost), worker.begin() as session:
        lifecycle.renew_export(session, job_id, "one", 60)


def test_only_what_somebody_approved_is_merged(api: Sessions, identity: Identity, candidate: str) -> None:
    for state, is_merged in (("candidate", False), ("approved", True), ("released", True), ("rejected", False)):
        if state != "candidate":
            change(api, candidate, AdapterState(state))
        if is_merged:
            assert ask(api, identity, candidate) == ExportStatus.MERGING
        else:
            with pytest.raises(Conflict, match=state):
                ask(api, identity, candidate)


def test_weights_of_bases_do_not_leave_unless_the_operator_lets_them(client: Client, tmp_path: Path) -> None:
    job_id = submit_script(client, tmp_path)
    wait_for_status(client, job_id, "succeeded")
    path = f"/jobs/{job_id}/export"
    refused = []
    calls: list[Callable[[], Any]] = [lambda: client.post(path), lambda: client.get(f"{path}/model")]
    for call in calls:
        with pytest.raises(ApiError) as caught:
            call()
        refused.append((caught.value.status, caught.value.code))

    assert refused == [(403, "merged_export_not_allowed")] * 2
