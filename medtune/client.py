"""The typed client: a method for each thing that is done with jobs and datasets, over the service's own models."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.history_schemas import EventRead, LogChunkRead, MetricRead
from api.pages import CursorPage, Page
from api.plan_schemas import PlanRead
from api.schemas import DatasetRead, JobRead
from jobs.spec import JobSpec
from jobs.status import FINAL, DatasetStatus, JobStatus
from medtune.config import load_config
from medtune.connection import ApiError, Connection, Json, persist

Model = TypeVar("Model", bound=BaseModel)
History = TypeVar("History", EventRead, LogChunkRead, MetricRead)

ENDED = FINAL | {JobStatus.HELD}
"""Nothing more happens by itself: a held job waits for people."""

_JobPage = Page[JobRead]
_DatasetPage = Page[DatasetRead]
_EventPage = CursorPage[EventRead]
_LogPage = CursorPage[LogChunkRead]
_MetricPage = CursorPage[MetricRead]


class Client(Connection):
    """A connection to a service. It is a context manager; every method raises ApiError.

    Methods that wait or follow, and those that begin with `iter_`, outlive a lost connection and a restart of the
    service, for `patience_seconds` each time. All others send their request once.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience_seconds: float = 300,
        on_lost: Callable[[ApiError], None] | None = None,
    ) -> None:
        """Without URL or key those of the environment or of `~/.config/medtune.toml`, as on the command line.

        `on_lost` is called each time that the service begins to be away. Raises ConfigError.
        """
        config = load_config(url, api_key)
        super().__init__(config.url, config.api_key)
        self.patience_seconds = patience_seconds
        self.on_lost = on_lost

    # --- Datasets ---

    def upload_dataset(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        phi_policy: str | None = None,
        overlap_policy: str | None = None,
        **fields: str | None,
    ) -> DatasetRead:
        """`fields`: phi_strategy, patient_key, attested_by, attestation. Its check is not done yet:
        `wait_for_dataset`."""
        policies = {"phi_policy": phi_policy, "overlap_policy": overlap_policy}
        return _read(DatasetRead, self.upload_file(Path(path), {"name": name, **policies, **fields}))

    def get_dataset(self, dataset_id: str) -> DatasetRead:
        return _read(DatasetRead, self.get(f"/datasets/{dataset_id}"))

    def list_datasets(self, *, limit: int = 50, after: str | None = None) -> Page[DatasetRead]:
        """The newest first; `after`: the last id of the page before."""
        return _read(_DatasetPage, self.get("/datasets", limit=limit, after=after))

    def wait_for_dataset(self, dataset_id: str, *, poll_seconds: float = 0.5) -> DatasetRead:
        """Until it is checked: `ready` or `rejected`."""
        while (dataset := self._persist(lambda: self.get_dataset(dataset_id))).status == DatasetStatus.VALIDATING:
            time.sleep(poll_seconds)
        return dataset

    # --- Jobs ---

    def plan_job(self, request: JobSpec | Mapping[str, Any]) -> PlanRead:
        """What the job would take; nothing is queued."""
        return _read(PlanRead, self.post("/jobs", _build_body(request), dry_run=True))

    def create_job(self, request: JobSpec | Mapping[str, Any], *, idempotency_key: str | None = None) -> JobRead:
        """With the same key of your own, the same request makes one job however often it is sent."""
        return _read(JobRead, self.post("/jobs", _build_body(request), idempotency_key=idempotency_key))

    def get_job(self, job_id: str) -> JobRead:
        return _read(JobRead, self.get(f"/jobs/{job_id}"))

    def list_jobs(
        self,
        *,
        status: JobStatus | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> Page[JobRead]:
        """The newest first; `after`: the last id of the page before."""
        labels = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return _read(_JobPage, self.get("/jobs", status=status, model=model, limit=limit, after=after, **labels))

    def wait_for_job(
        self, job_id: str, *, on_poll: Callable[[JobRead], None] | None = None, poll_seconds: float = 1.0
    ) -> JobRead:
        """Until it has succeeded, failed, was cancelled or is held; also while it is paused."""
        while True:
            job = self._persist(lambda: self.get_job(job_id))
            if on_poll is not None:
                on_poll(job)
            if job.status in ENDED:
                return job
            time.sleep(poll_seconds)

    def pause_job(self, job_id: str) -> JobRead:
        return _read(JobRead, self.post(f"/jobs/{job_id}/pause"))

    def resume_job(self, job_id: str) -> JobRead:
        return _read(JobRead, self.post(f"/jobs/{job_id}/resume"))

    def cancel_job(self, job_id: str) -> JobRead:
        return _read(JobRead, self.post(f"/jobs/{job_id}/cancel"))

    def retry_job(self, job_id: str, changes: Mapping[str, Any] | None = None) -> JobRead:
        """A new job; `changes` are merged into the old one's request, null is a default."""
        return _read(JobRead, self.post(f"/jobs/{job_id}/retry", changes))

    # --- What a job has left behind, and leaves ---

    def iter_logs(self, job_id: str, *, after: int = 0) -> Iterator[LogChunkRead]:
        """The log so far; `after`: the `seq` of the last chunk that you have."""
        return self._iter(_LogPage, f"/jobs/{job_id}/logs", after)

    def iter_metrics(self, job_id: str, *, after: int = 0) -> Iterator[MetricRead]:
        """The numbers of the steps so far."""
        return self._iter(_MetricPage, f"/jobs/{job_id}/metrics", after)

    def iter_events(self, job_id: str, *, after: int = 0) -> Iterator[EventRead]:
        """What happened so far."""
        return self._iter(_EventPage, f"/jobs/{job_id}/events", after)

    def follow_logs(self, job_id: str, *, after: int = 0, poll_seconds: float = 0.5) -> Iterator[LogChunkRead]:
        """The log as it comes, each chunk once, until the job has ended."""
        has_ended = False
        while not has_ended:  # Asked before the log is read: what comes between both belongs to it.
            has_ended = self._persist(lambda: self.get_job(job_id)).status in ENDED
            for chunk in self.iter_logs(job_id, after=after):
                after = chunk.seq
                yield chunk
            if not has_ended:
                time.sleep(poll_seconds)

    def download_adapter(self, job_id: str, path: str | Path) -> Path:
        """Writes the adapter's `.tar.gz` to the path: whole, or nothing."""
        self.download_file(f"/jobs/{job_id}/adapter", Path(path))
        return Path(path)

    def _iter(self, page_model: type[CursorPage[History]], path: str, after: int) -> Iterator[History]:
        has_more = True
        while has_more:
            page = self._persist(lambda: _read(page_model, self.get(path, after=after)))  # noqa: B023  called at once
            yield from page.data
            after, has_more = page.cursor, page.has_more

    def _persist(self, read: Callable[[], Model]) -> Model:
        """A service that never answered is none that is away for a while."""
        if not self.has_answered:
            return read()
        return persist(read, patience_seconds=self.patience_seconds, on_lost=self.on_lost)


def _read(model: type[Model], content: Json) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        message = f"the answer is none that this version knows ({where}: {problem['msg']})"
        remedy = "use the client of the service's version"
        raise ApiError(message, code="unexpected_answer", details={"remedy": remedy}) from error


def _build_body(request: JobSpec | Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a JobSpec only what was set: defaults are the service's."""
    return request.model_dump(mode="json", exclude_unset=True) if isinstance(request, JobSpec) else request
