"""What OpenAI's clients read: every field that their types require, times in whole seconds. `read_*` build them."""

import datetime
import time
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Row

from api.pages import ReadModel
from api.routes.openai import ids
from api.routes.openai.ids import Result
from api.schemas import JobRead, read_job
from jobs.models import Adapter, Checkpoint, Dataset
from jobs.openai_hyperparameters import DEFAULT_LEARNING_RATE
from jobs.status import FINAL, DatasetStatus, JobStatus
from trainer_core.run_dir import ModelSource

Item = TypeVar("Item")


class ListObject(ReadModel, Generic[Item]):
    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileObject(ReadModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["uploaded", "processed", "error"]
    """`uploaded` until the rows are checked; `error`: they were rejected, and `status_details` says why."""
    status_details: str | None = None


class DeletedObject(ReadModel):
    id: str
    object: Literal["file", "model"]
    deleted: Literal[True] = True


class Hyperparameters(ReadModel):
    n_epochs: int | float
    batch_size: int
    learning_rate_multiplier: float


class Supervised(ReadModel):
    hyperparameters: Hyperparameters


class Method(ReadModel):
    type: Literal["supervised"] = "supervised"
    supervised: Supervised


class JobError(ReadModel):
    code: str
    message: str
    param: str | None


class FineTuningJob(ReadModel):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    """Once an adapter exists."""
    organization_id: str
    """The tenant."""
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    hyperparameters: Hyperparameters
    method: Method
    training_file: str
    validation_file: str | None
    result_files: list[str]
    """The metrics of each step as CSV, and the adapter as `.tar.gz`."""
    trained_tokens: int | None
    error: JobError | None
    seed: int
    estimated_finish: int | None
    integrations: list[dict[str, Any]] = []
    metadata: dict[str, str] | None
    medtune: JobRead
    """The same job as the API of our own tells it."""


class JobEvent(ReadModel):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class JobCheckpoint(ReadModel):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float]


class ModelObject(ReadModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    """0: unknown, as of every base model."""
    owned_by: str
    """`medtune`: a base model; else the tenant whose job made it."""


AnyItem = TypeVar("AnyItem", FileObject, FineTuningJob, JobEvent, JobCheckpoint, ModelObject)


def build_list(items: list[AnyItem], limit: int) -> ListObject[AnyItem]:
    """Of one item more than `limit`, where there are more."""
    page = items[:limit]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return ListObject(data=page, first_id=first, last_id=last, has_more=len(items) > limit)


def to_seconds(moment: datetime.datetime) -> int:
    return int(moment.timestamp())


_FILE_STATUSES: dict[DatasetStatus, Literal["uploaded", "processed", "error"]] = {
    DatasetStatus.VALIDATING: "uploaded",
    DatasetStatus.READY: "processed",
    DatasetStatus.REJECTED: "error",
}


def read_file(dataset: Dataset) -> FileObject:
    return FileObject(
        id=ids.write_file_id(dataset.id),
        bytes=dataset.num_bytes,
        created_at=to_seconds(dataset.created_at),
        filename=dataset.filename,
        purpose="fine-tune",
        status=_FILE_STATUSES[dataset.status],
        status_details=_describe_rejection(dataset),
    )


def _describe_rejection(dataset: Dataset) -> str | None:
    if dataset.status != DatasetStatus.REJECTED:
        return None
    problems = [
        f"line {problem.get('line')}: {problem['message']}"
        for problem in (dataset.report or {}).get("findings", [])[:3]
    ]
    return "; ".join(problems) or f"rejected; GET /datasets/{dataset.id}/report says why"


_STATUSES: dict[JobStatus, Literal["validating_files", "queued", "running", "paused"]] = {
    JobStatus.VALIDATING: "validating_files",
    JobStatus.QUEUED: "queued",
    JobStatus.STARTING: "running",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSING: "running",
    JobStatus.STOPPING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.HELD: "paused",
}


def read_fine_tuning_job(row: Row[Any], tenant_id: str) -> FineTuningJob:
    """From a row of `repository.get_job_view` or `list_job_views`."""
    job = read_job(row)
    has_adapter = job.adapter is not None
    hyperparameters = _read_hyperparameters(job.training)
    return FineTuningJob(
        id=ids.write_job_id(job.id),
        created_at=to_seconds(job.created_at),
        finished_at=None if job.finished_at is None else to_seconds(job.finished_at),
        model=job.model,
        fine_tuned_model=ids.write_model_id(job.model, tenant_id, job.name, job.id) if has_adapter else None,
        organization_id=tenant_id,
        status=job.status.value if job.status in FINAL else _STATUSES[job.status],
        hyperparameters=hyperparameters,
        method=Method(supervised=Supervised(hyperparameters=hyperparameters)),
        training_file=_name_training_file(job),
        validation_file=_find_validation_file(job),
        result_files=[ids.write_result_id(job.id, result) for result in Result] if has_adapter else [],
        trained_tokens=job.progress.tokens if job.progress and job.status in FINAL else None,
        error=_read_error(job),
        seed=job.training["seed"],
        estimated_finish=_estimate_finish(job),
        metadata=job.metadata or None,
        medtune=job,
    )


def _read_hyperparameters(training: dict[str, Any]) -> Hyperparameters:
    epochs = training["epochs"]
    return Hyperparameters(
        n_epochs=int(epochs) if epochs == int(epochs) else epochs,
        batch_size=training["global_batch_size"],
        learning_rate_multiplier=round(training["learning_rate"] / DEFAULT_LEARNING_RATE, 9),
    )


def _name_training_file(job: JobRead) -> str:
    """Rows that were named by an address and not uploaded keep it."""
    dataset_id = job.dataset.get("id")
    return ids.write_file_id(dataset_id) if dataset_id else str(job.dataset.get("uri"))


def _find_validation_file(job: JobRead) -> str | None:
    dataset_id = (job.validation or {}).get("id")
    return None if dataset_id is None else ids.write_file_id(dataset_id)


def _read_error(job: JobRead) -> JobError | None:
    if job.status != JobStatus.FAILED or job.reason is None:
        return None
    param = "training_file" if job.reason["code"] == "dataset_rejected" else None
    return JobError(code=job.reason["code"], message=job.reason["message"], param=param)


def _estimate_finish(job: JobRead) -> int | None:
    if job.status != JobStatus.RUNNING or job.progress is None or job.progress.eta_seconds is None:
        return None
    return int(time.time() + job.progress.eta_seconds)


def read_checkpoint(checkpoint: Checkpoint, row: Row[Any], tenant_id: str) -> JobCheckpoint:
    """`row` is the job's view."""
    model = ids.write_model_id(row.model, tenant_id, row.name, row.id)
    return JobCheckpoint(
        id=ids.write_checkpoint_id(checkpoint.id),
        created_at=to_seconds(checkpoint.created_at),
        fine_tuning_job_id=ids.write_job_id(row.id),
        fine_tuned_model_checkpoint=f"{model}:ckpt-step-{checkpoint.step}",
        step_number=checkpoint.step,
        metrics={"step": checkpoint.step, **rename_metrics(checkpoint.metrics)},
    )


_METRIC_NAMES = {"loss": "train_loss", "eval_loss": "valid_loss"}


def rename_metrics(values: dict[str, Any]) -> dict[str, float]:
    """Numbers under the names that OpenAI's clients know, where there is one."""
    return {
        _METRIC_NAMES.get(name, name): value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def read_base_model(model: ModelSource) -> ModelObject:
    return ModelObject(id=model.id, created=0, owned_by="medtune")


def read_fine_tuned_model(adapter: Adapter) -> ModelObject:
    return ModelObject(
        id=ids.write_model_id(adapter.model, adapter.tenant_id, adapter.name, adapter.job_id),
        created=to_seconds(adapter.created_at),
        owned_by=adapter.tenant_id,
    )
