"""An adapter's way from candidate to released: each step is a person's, and only through an open gate."""

from sqlalchemy.orm import Session

from jobs import repository
from jobs.data_policy import find_release_blocker
from jobs.errors import Conflict
from jobs.lifecycle.reviews import Person, change_adapter, find_open_findings
from jobs.models import Adapter, Job, Json
from jobs.status import ADAPTER_CHANGES, AdapterState

_MAX_NAMED = 20


def approve_adapter(session: Session, job_id: str, person: Person) -> Adapter:
    """Raises Conflict when the gate is closed, NotFound."""
    return _advance(session, job_id, AdapterState.APPROVED, person)


def release_adapter(session: Session, job_id: str, person: Person) -> Adapter:
    """For everybody who may use this service. Raises Conflict when the gate is closed, NotFound."""
    return _advance(session, job_id, AdapterState.RELEASED, person)


def reject_adapter(session: Session, job_id: str, person: Person) -> Adapter:
    """Also one that was released: it is withdrawn. Raises Conflict, NotFound."""
    job = repository.lock_job(session, job_id)
    adapter = repository.lock_adapter(session, job)
    _check_change(adapter, AdapterState.REJECTED)
    change_adapter(session, job, adapter, AdapterState.REJECTED, person)
    return adapter


def find_blockers(session: Session, job: Job) -> list[Json]:
    """What closes the gate to a release: code, message, remedy. Empty: verification, data and safety are all green."""
    found = []
    if not (job.verification or {}).get("ok"):
        found.append(_block("not_verified", "the adapter was not verified", "retry the job"))
    ancestors, unseen = repository.list_ancestors(session, job)
    found += _find_unfit_ancestors(session, ancestors, unseen)
    learned = {one.id: one for each in (job, *ancestors) for one in repository.list_datasets_of_job(session, each)}
    for dataset in learned.values():
        if (blocker := find_release_blocker(dataset)) is not None:
            remedy = "replace the identifiers and train anew, or answer for them: POST /datasets/{id}/attest"
            found.append(_block("identifiers_in_data", f"{dataset.id}: {blocker}", remedy, dataset=dataset.id))
    if review := repository.find_open_review(session, job.id):
        message = f"{review.id} waits for a decision"
        remedy = "approve it by two persons: POST /reviews/{id}/approve"
        found.append(_block("review_is_open", message, remedy, review=review.id))
    if findings := find_open_findings(session, job):
        keys = [{"probe_id": finding["probe_id"], "check": finding["check"]} for finding in findings[:_MAX_NAMED]]
        message = f"open findings of the safety checks: {len(findings)}"
        remedy = "let two persons decide about them: POST /adapters/{job}/review"
        found.append(_block("safety_findings_open", message, remedy, findings=keys))
    return found


def _find_unfit_ancestors(session: Session, ancestors: list[Job], unseen: str | None) -> list[Json]:
    """What it began with that was rejected since, or is another's and not released any more."""
    adapters = [(each.id, repository.find_adapter(session, each.id)) for each in ancestors]
    unfit = [job_id for job_id, adapter in adapters if adapter and adapter.state == AdapterState.REJECTED]
    if unseen is not None:
        adapter = repository.find_adapter(session, unseen)
        unfit += [] if adapter and adapter.state == AdapterState.RELEASED else [unseen]
    remedy = "train anew, from another adapter or a fresh one"
    if unseen is not None and repository.find_deletion_of(session, unseen) is not None:
        message = f"it is derived from {unseen}, which was deleted: nobody can tell any more what that learned"
        unfit.remove(unseen)
        return [_block("ancestor_deleted", message, remedy, job=unseen), *_name_unfit(unfit, remedy)]
    return _name_unfit(unfit, remedy)


def _name_unfit(unfit: list[str], remedy: str) -> list[Json]:
    message = "it is derived from what {} learned, which was rejected or withdrawn"
    return [_block("ancestor_rejected", message.format(job_id), remedy, job=job_id) for job_id in unfit]


def _advance(session: Session, job_id: str, to: AdapterState, person: Person) -> Adapter:
    # Whatever could close the gate meanwhile changes under the lock of the job's row, or of its datasets'.
    repository.lock_datasets_of_job(session, repository.get_job(session, job_id))
    job = repository.lock_job(session, job_id)
    adapter = repository.lock_adapter(session, job)
    _check_change(adapter, to)
    if blockers := find_blockers(session, job):
        message = "; ".join(blocker["message"] for blocker in blockers)
        raise Conflict("release_blocked", f"the adapter cannot be {to}: {message}", blockers=blockers)
    change_adapter(session, job, adapter, to, person)
    return adapter


def _check_change(adapter: Adapter, to: AdapterState) -> None:
    if to not in ADAPTER_CHANGES[adapter.state]:
        message = f"the adapter is {adapter.state}; it cannot become {to}"
        raise Conflict("adapter_state", message, state=adapter.state)


def _block(code: str, message: str, remedy: str, **details: object) -> Json:
    return {"code": code, "message": message, "remedy": remedy, **details}
