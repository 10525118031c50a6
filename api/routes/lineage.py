"""Lineage: which datasets and adapters a row went into."""

import datetime
import hashlib
import hmac
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, StringConstraints

from api.dependencies import ServicesDep, TransactionDep
from api.free_json import FreeJson
from api.pages import ReadModel
from jobs import repository
from jobs.errors import InvalidRequest
from jobs.status import AdapterState, DatasetStatus, JobStatus
from trainer_core.data.row_hashes import hash_row

router = APIRouter(prefix="/lineage", tags=["lineage"])


class RowQuery(BaseModel):
    """Either of them."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    row: FreeJson | None = None
    """The row, with all of its keys, as it stands in the file."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the row as JSON with sorted keys, no spaces and ASCII only: Python's `json.dumps(row, sort_keys=True,
    separators=(",", ":"))`."""


class DatasetOfRow(ReadModel):
    id: str
    name: str
    status: DatasetStatus
    sha256: str
    rows_digest: str | None
    created_at: datetime.datetime


class JobOfRow(ReadModel):
    id: str
    name: str | None
    model: str
    status: JobStatus
    roles: dict[str, Literal["training", "validation"]]
    """By dataset; empty where it only goes on from an adapter of such a job. Of training rows
    the job may hold a part out, or leave out what is too long."""
    derived_from: str | None
    """The job whose adapter or checkpoint its own began with."""
    adapter: AdapterState | None
    """Null: there is none."""
    adapter_sha256: str | None
    created_at: datetime.datetime
    deleted_at: datetime.datetime | None
    """Then this is what its record tells; `adapter` is the state that its adapter had."""


class RowRead(ReadModel):
    object: Literal["row"] = "row"
    row_sha256: str
    datasets: list[DatasetOfRow]
    """Those that have the row, as it is trained on; newest first."""
    jobs: list[JobOfRow]
    """Those that name one of the datasets, those that go on from these, and so the adapters that may have learned
    the row; newest first."""


@router.post("/rows", summary="Which datasets have a row, and which adapters were trained on them")
def find_row(body: RowQuery, transaction: TransactionDep, services: ServicesDep) -> RowRead:
    """No dataset in the answer: none that was checked and that is still there has the row, exactly as it was sent."""
    with transaction as caller:
        row_hash = _read_hash(body)
        # Who reads the audit log is not to find out the row by guesses.
        caller.object_id = "row_" + hmac.digest(services.secret_key, row_hash, hashlib.sha256).hex()[:32]
        datasets = repository.list_datasets_with_row(caller.session, [row_hash])
        jobs = repository.list_jobs_of_datasets(caller.session, [dataset.id for dataset in datasets])
    return RowRead(
        row_sha256=row_hash.hex(),
        datasets=[DatasetOfRow.model_validate(dataset, from_attributes=True) for dataset in datasets],
        jobs=[_read_job(job, {dataset.id for dataset in datasets}) for job in jobs],
    )


def _read_hash(body: RowQuery) -> bytes:
    if (body.row is None) == (body.sha256 is None):
        raise InvalidRequest("invalid_field", "row: send either the row or its sha256", param="row")
    if body.sha256 is not None:
        return bytes.fromhex(body.sha256)
    assert body.row is not None
    return hash_row(body.row)


def _read_job(job: Any, found: set[str]) -> JobOfRow:
    roles: dict[str, Literal["training", "validation"]] = {}
    if job.validation_dataset_id in found:
        roles[job.validation_dataset_id] = "validation"
    if job.dataset_id in found:
        roles[job.dataset_id] = "training"
    return JobOfRow(
        id=job.id,
        name=job.name,
        model=job.model,
        status=job.status,
        roles=roles,
        derived_from=job.derived_from,
        adapter=job.adapter_state,
        adapter_sha256=job.adapter_sha256,
        created_at=job.created_at,
        deleted_at=job.deleted_at,
    )
