"""From a client's wish to a job's row: what is refused here never takes a GPU."""

import hashlib

from sqlalchemy.orm import Session

from jobs import lifecycle, repository
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.model_registry import get_model
from jobs.models import Job
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.spec import JobSpec


def submit_job(
    session: Session, identity: Identity, settings: Settings, spec: JobSpec, idempotency_key: str | None = None
) -> Job:
    """The new job; or the one that the same key with the same body made before. Raises InvalidRequest, NotFound."""
    request_hash = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    if idempotency_key is not None:
        earlier = repository.find_job_by_idempotency_key(session, identity.tenant_id, idempotency_key)
        if earlier is not None:
            return _replay(earlier, request_hash)
    get_model(settings, spec.model)
    datasets = [repository.get_dataset_for_job(session, spec.dataset.id, param="dataset.id")]
    if spec.validation is not None and spec.validation.id is not None:
        datasets.append(repository.get_dataset_for_job(session, spec.validation.id, param="validation.id"))
    gpus = spec.resources.gpus
    job = Job(
        id=new_id("job"),
        tenant_id=identity.tenant_id,
        name=spec.name,
        model=spec.model,
        dataset_id=datasets[0].id,
        validation_dataset_id=datasets[1].id if len(datasets) == 2 else None,
        spec=spec.model_dump(mode="json"),
        priority=spec.priority,
        num_gpus=repository.DEFAULT_GPUS if gpus is None else gpus,
        labels=spec.metadata,
        idempotency_key=idempotency_key,
        request_hash=request_hash if idempotency_key else None,
        created_by=identity.key_id,
    )
    return lifecycle.create_job(session, job, datasets)


def _replay(job: Job, request_hash: str) -> Job:
    if job.request_hash != request_hash:
        raise InvalidRequest(
            "idempotency_key_reused",
            "this Idempotency-Key was used with another body; take a new key for a new job",
            param="Idempotency-Key",
        )
    return job
