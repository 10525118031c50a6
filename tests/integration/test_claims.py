"""Whose turn it is, and who gets it."""

import threading

import pytest
from sqlalchemy import func, text

from jobs import lifecycle, repository
from jobs.database import Role, Sessions, tenant_transaction
from jobs.errors import LimitReached
from jobs.lifecycle import Ending, Retries
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import Fault, JobStatus
from tests.integration.rows import (
    BROKEN,
    OpenSessions,
    add_dataset,
    add_key,
    claim,
    submit,
    try_to_claim,
)


def test_forty_claimants_take_every_job_once(
    api: Sessions, open_sessions: OpenSessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    wanted = {submit(api, identity, settings, dataset_id).id for _ in range(40)}
    sessions = open_sessions(Role.WORKER)
    taken: list[str] = []

    def claim_all(owner: str) -> None:
        while True:
            claimed = try_to_claim(sessions, owner)
            if claimed is None:
                return
            taken.append(claimed[0].id)

    threads = [threading.Thread(target=claim_all, args=(f"w{n}",)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == sorted(wanted)


def test_the_highest_priority_comes_first_then_the_oldest(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    old, urgent, new = (submit(api, identity, settings, dataset_id, priority=p).id for p in (0, 5, 0))
    with tenant_transaction(api, "a") as session:
        positions = [repository.get_job_view(session, job_id).queue_position for job_id in (old, urgent, new)]

    order = [claim(worker)[0].id for _ in range(3)]

    assert order == [urgent, old, new]
    assert positions == [2, 1, 3]


def test_a_worker_takes_only_what_fits_on_its_gpus(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    submit(api, identity, settings, add_dataset(api, identity), resources={"gpus": 2})

    assert try_to_claim(worker, "small", num_gpus=1) is None
    assert claim(worker, num_gpus=2)[0].num_gpus == 2


def test_keys_take_turns(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    """However many jobs one has queued first."""
    dataset_id = add_dataset(api, identity)
    mine = [submit(api, identity, settings, dataset_id).id for _ in range(3)]
    other = add_key(api)
    theirs = [submit(api, other, settings, dataset_id).id for _ in range(2)]
    waiting = [*mine, *theirs]
    with tenant_transaction(api, "a") as session:
        places = {job_id: repository.get_job_view(session, job_id).queue_position for job_id in waiting}

    order = [claim(worker)[0].id for _ in range(5)]

    assert order == [mine[0], theirs[0], mine[1], theirs[1], mine[2]]
    assert sorted(waiting, key=lambda job_id: places[job_id]) == order


def test_a_key_runs_no_more_jobs_than_it_may(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_running=1)
    first, second = (submit(api, limited, settings, dataset_id, priority=9).id for _ in range(2))
    free = submit(api, identity, settings, dataset_id).id

    (job, lease), (other, _) = claim(worker), claim(worker)
    assert (job.id, other.id) == (first, free)
    assert try_to_claim(worker) is None
    with worker.begin() as session:
        lifecycle.fail(session, lease, Ending(BROKEN, Fault.USER))
    assert claim(worker)[0].id == second


def test_a_key_queues_no_more_jobs_than_it_may(
    api: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    """Nor when many try at once."""
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_queued=3)
    refusals: list[str] = []

    def try_to_submit() -> None:
        try:
            submit(api, limited, settings, dataset_id)
        except LimitReached as refusal:
            refusals.append(refusal.code)

    threads = [threading.Thread(target=try_to_submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert refusals == ["queue_limit_reached"] * 5


def test_a_large_job_is_passed_by_until_it_has_waited_long(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings
) -> None:
    dataset_id = add_dataset(api, identity)
    large = submit(api, identity, settings, dataset_id, resources={"gpus": 4}, priority=1).id
    small, smaller = (submit(api, identity, settings, dataset_id, resources={"gpus": n}).id for n in (2, 1))

    claimed = try_to_claim(worker, host_gpus=4, free_gpus=2)
    assert claimed is not None
    assert claimed[0].id == small
    assert try_to_claim(worker, host_gpus=4, free_gpus=2, patience_seconds=0) is None
    on_a_smaller_host = try_to_claim(worker, host_gpus=2, free_gpus=2, patience_seconds=0)
    assert on_a_smaller_host is not None
    assert on_a_smaller_host[0].id == smaller
    assert claim(worker, num_gpus=4)[0].id == large


def test_a_job_waits_out_its_back_off(api: Sessions, worker: Sessions, identity: Identity, settings: Settings) -> None:
    submit(api, identity, settings, add_dataset(api, identity))
    slow = Retries(max_infra_restarts=9, max_no_progress_restarts=9, backoff_seconds=100)
    waits = []
    for _ in range(3):
        _, lease = claim(worker)
        with worker.begin() as session:
            lifecycle.give_back(session, lease, Ending(BROKEN, Fault.INFRASTRUCTURE), slow)
        assert try_to_claim(worker) is None
        with worker.begin() as session:
            job = repository.get_job(session, lease.job_id)
            waits.append(round((job.not_before - job.queued_at).total_seconds()))
            job.not_before = func.now()

    assert waits == [100, 200, 400]


def test_a_keys_limit_holds_when_two_claim_at_once(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    """For different jobs. The second waits for the first one's end, and then sees what that took."""
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_running=1)
    for num_gpus in (1, 0):
        submit(api, limited, settings, dataset_id, resources={"gpus": num_gpus}, priority=num_gpus)
    found: list[object] = []
    second = threading.Thread(target=lambda: found.append(try_to_claim(worker, "second")))
    first = "SELECT id FROM medtune_claim_job('first', 'host', 60, 1, 1, 600, 'evt_first')"

    with worker.begin() as session:  # claim_job() ends its transaction itself; this one stays in the middle.
        assert session.scalar(text(first)) is not None
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive()
    second.join()

    assert found == [None]


def test_a_resumed_job_counts_for_its_keys_limit(
    api: Sessions, worker: Sessions, identity: Identity, settings: Settings, open_sessions: OpenSessions
) -> None:
    dataset_id = add_dataset(api, identity)
    limited = add_key(open_sessions(None), max_queued=1)
    paused = submit(api, limited, settings, dataset_id).id
    with tenant_transaction(api, "a") as session:
        lifecycle.request_pause(session, paused)
    submit(api, limited, settings, dataset_id)

    with pytest.raises(LimitReached), tenant_transaction(api, "a") as session:
        lifecycle.resume(session, paused)
    claim(worker)
    with tenant_transaction(api, "a") as session:
        assert lifecycle.resume(session, paused).status == JobStatus.QUEUED
