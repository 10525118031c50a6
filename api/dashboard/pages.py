"""The pages. Each shows what the public API's own functions return, so that both always agree."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from api.dashboard.job_form import build_form
from api.dashboard.job_settings import list_settings
from api.dashboard.rendering import render
from api.dependencies import Caller, IdentityDep, ServicesDep, Transaction, TransactionDep
from api.routes import adapters as adapter_routes
from api.routes import datasets as dataset_routes
from api.routes import jobs as job_routes
from api.routes import models as model_routes
from api.routes import reviews as review_routes
from api.safety_schemas import SafetyRoundRead, read_safety_round
from api.schemas import DatasetRead, JobRead
from jobs import repository
from jobs.status import FINAL, DatasetStatus, JobStatus

router = APIRouter()

_PAGE_SIZE = 25
_MAX_DATASETS = 200
_EVENTS = 500
_LOG_CHUNKS = 200
_LOG_LINES = 2000
_ROUNDS = 20
_METRICS = 20_000
"""As many of the newest are in the chart."""


@router.get("/")
def show_start() -> Response:
    return RedirectResponse("/dashboard/jobs", status_code=303)


@router.get("/jobs")
def show_jobs(
    request: Request,
    transaction: TransactionDep,
    status: Annotated[JobStatus | None, Query()] = None,
    after: str | None = None,
) -> Response:
    page = job_routes.list_jobs(request, transaction, status=status, limit=_PAGE_SIZE, after=after)
    return render("jobs.html", page=page, status=status, statuses=list(JobStatus), after=after, page_size=_PAGE_SIZE)


@router.get("/jobs/new")
def show_new_job(
    transaction: TransactionDep, identity: IdentityDep, services: ServicesDep, dataset: str | None = None
) -> Response:
    return render(
        "new_job.html",
        models=model_routes.get_models(identity, services).data,
        datasets=[item for item in _list_datasets(transaction) if item.status == DatasetStatus.READY],
        chosen_dataset=dataset,
        form=build_form(),
    )


@router.get("/jobs/{job_id}")
def show_job(job_id: str, transaction: TransactionDep) -> Response:
    job = job_routes.load_job(job_id, transaction)
    with transaction as caller:
        last_metric, last_chunk = repository.get_last_seqs(caller.session, job_id)
        dataset_names = _name_datasets(caller, job.dataset, job.validation)
    reviews = review_routes.list_reviews(transaction, job=job_id, limit=1).data
    adapter = adapter_routes.get_adapter(job_id, transaction) if job.adapter else None
    blockers = [blocker.code for blocker in (adapter.blockers or [])] if adapter else []
    attempts = job_routes.list_attempts(job_id, transaction).data if job.attempt > 1 else []
    logs = job_routes.list_logs(job_id, transaction, after=max(0, last_chunk - _LOG_CHUNKS), limit=_LOG_CHUNKS)
    log_lines = [line for chunk in logs.data for line in chunk.text.splitlines()]
    return render(
        "job.html",
        job=job,
        is_final=job.status in FINAL,
        actions=_list_actions(job),
        attempts=attempts,
        rounds=_list_newest_rounds(job_id, transaction),
        review=next((review for review in reviews if review.closed_at is None), None),
        adapter=adapter,
        blocks_by_findings="safety_findings_open" in blockers,
        datasets=dataset_names,
        settings=list_settings(job.training),
        events=job_routes.list_events(job_id, transaction, limit=_EVENTS),
        logs=logs,
        log_lines=log_lines[-_LOG_LINES:],
        logs_are_cut=last_chunk > _LOG_CHUNKS or len(log_lines) > _LOG_LINES,
        metrics_after=max(0, last_metric - _METRICS),
    )


def _list_newest_rounds(job_id: str, transaction: Transaction) -> list[SafetyRoundRead]:
    with transaction as caller:
        return [read_safety_round(row) for row in repository.list_newest_safety_rounds(caller.session, job_id, _ROUNDS)]


@router.get("/docs")
def show_docs(_identity: IdentityDep) -> Response:
    return render("docs.html")


@router.get("/reviews")
def show_reviews(transaction: TransactionDep, after: str | None = None) -> Response:
    page = review_routes.list_reviews(transaction, limit=_PAGE_SIZE, after=after)
    return render("reviews.html", page=page)


@router.get("/datasets")
def show_datasets(transaction: TransactionDep, after: str | None = None) -> Response:
    page = dataset_routes.list_datasets(transaction, limit=_PAGE_SIZE, after=after)
    return render("datasets.html", page=page, after=after)


@router.get("/datasets/{dataset_id}")
def show_dataset(dataset_id: str, transaction: TransactionDep) -> Response:
    dataset = dataset_routes.get_dataset(dataset_id, transaction)
    is_checked = dataset.status != DatasetStatus.VALIDATING
    report = dataset_routes.get_report(dataset_id, transaction) if is_checked else None
    return render("dataset.html", dataset=dataset, report=report)


@dataclass(frozen=True)
class Action:
    """A button that asks for something to become of the job."""

    name: str
    label: str
    is_enabled: bool
    style: str = "secondary"


def _list_actions(job: JobRead) -> list[Action]:
    """Those that make sense for its status; one that is under way is shown without being enabled."""
    is_final = job.status in FINAL
    is_going = not is_final and job.cancel_requested_at is None
    cancel_label = "Cancel the job" if is_going or is_final else "Cancelling…"
    cancel = Action("cancel", cancel_label, is_going, "danger")
    if is_final:
        return [Action("retry", "Retry", True), cancel]
    if job.status == JobStatus.PAUSED:
        return [Action("resume", "Resume", is_going, "primary"), cancel]
    if job.status == JobStatus.HELD:
        return [cancel]
    if job.status == JobStatus.PAUSING:
        return [Action("pause", "Pausing…", False), cancel]
    return [Action("pause", "Pause", is_going and job.status != JobStatus.STOPPING), cancel]


def _list_datasets(transaction: Transaction) -> list[DatasetRead]:
    return dataset_routes.list_datasets(transaction, limit=_MAX_DATASETS).data


def _name_datasets(caller: Caller, *references: dict[str, Any] | None) -> dict[str, str]:
    """Names by id of the datasets that a job refers to."""
    ids = [reference["id"] for reference in references if reference and reference.get("id")]
    return {dataset_id: repository.get_dataset(caller.session, dataset_id).name for dataset_id in ids}
