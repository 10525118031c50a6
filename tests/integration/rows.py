"""Rows of jobs, keys and datasets without a service, and workers that only claim."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Row

from jobs import lifecycle, repository
from jobs.api_keys import create_key
from jobs.database import Role, Sessions, tenant_transaction
from jobs.ids import new_id
from jobs.lifecycle import Claimant, Lease, Retries
from jobs.models import ApiKey, Dataset, Job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import DatasetStatus
from jobs.submission import submit_job

OpenSessions = Callable[[Role | None], Sessions]
CHECKPOINT = {"step": 5, "store_key": "x", "num_bytes": 1, "sha256": "", "metrics": {}}
RETRIES = Retries(max_infra_restarts=2, max_no_progress_restarts=1, backoff_seconds=0)
BROKEN = {"code": "x", "message": "it broke"}


def add_dataset(api: Sessions, identity: Identity, status: DatasetStatus = DatasetStatus.READY) -> str:
    dataset_id = new_id("ds")
    with tenant_transaction(api, identity.tenant_id) as session:
        session.add(
            Dataset(
                id=dataset_id,
                tenant_id=identity.tenant_id,
                name="rows",
                filename="rows.jsonl",
                status=status,
                store_key="none",
                num_bytes=1,
                sha256="",
                created_by=identity.key_id,
            )
        )
    return dataset_id


def add_key(api: Sessions, **limits: int) -> Identity:
    with api.begin() as session:
        key, _ = create_key(session, b"secret", name="another", tenant_id="a")
    with api.begin() as session:
        for name, value in limits.items():
            setattr(session.get_one(ApiKey, key.id), name, value)
    return Identity(key.id, "a", is_admin=True, max_queued=limits.get("max_queued"))


def submit(api: Sessions, identity: Identity, settings: Settings, dataset_id: str, **fields: object) -> Row[Any]:
    spec = JobSpec.model_validate({"model": "tiny", "dataset": {"id": dataset_id}, **fields})
    with tenant_transaction(api, identity.tenant_id) as session:
        return submit_job(session, identity, settings, spec)


def try_to_claim(
    worker: Sessions, owner: str = "w1", seconds: float = 60, num_gpus: int = 0, **fields: Any
) -> tuple[Job, Lease] | None:
    claimant = Claimant(owner, "host", seconds, **{"host_gpus": num_gpus, "free_gpus": num_gpus, **fields})
    return lifecycle.claim_job(worker, claimant)


def claim(worker: Sessions, owner: str = "w1", seconds: float = 60, num_gpus: int = 0) -> tuple[Job, Lease]:
    claimed = try_to_claim(worker, owner, seconds, num_gpus)
    assert claimed is not None
    return claimed


def read(worker: Sessions, job_id: str) -> Job:
    with worker() as session:
        return repository.get_job(session, job_id)
