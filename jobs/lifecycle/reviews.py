"""What the safety checks found waits for people: a job is held, or an adapter is reviewed before its release.

The job's row is locked first, then its review, then its adapter.
"""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlalchemy.orm import Session

from jobs import repository
from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.lifecycle.changes import Ending, Lease, add_event, change_status, end_attempt, finish, lock_owned
from jobs.models import Adapter, Job, Json, Review
from jobs.repository import Identity
from jobs.seen_text import fold_name
from jobs.status import AdapterState, FailureReason, Fault, JobStatus, ReviewCause, ReviewState


@dataclass(frozen=True)
class Person:
    """Who decides, and why. A key may be several persons', so both it and the name are kept."""

    identity: Identity
    name: str
    reason: str

    def decide(self, to: str) -> Json:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {"to": to, "name": self.name, "reason": self.reason, "key_id": self.identity.key_id, "at": now}


def hold(session: Session, lease: Lease, ending: Ending, *, step: int | None, findings: Sequence[Json]) -> None:
    """The trainer saved a checkpoint and ended, because of what its safety checks found. A wish to cancel wins."""
    job = lock_owned(session, lease)
    if job.cancel_requested_at is not None:
        finish(session, job, JobStatus.CANCELLED, ending)
        return
    # As the round told them, with questions and answers; without it, as the trainer's last word has them.
    told = find_hold(session, job)
    hold_locked(session, job, ending, step, findings if told is None else told.findings)


def hold_locked(session: Session, job: Job, ending: Ending, step: int | None, findings: Sequence[Json]) -> None:
    """The job's row is locked, and whoever calls may take the job from its owner."""
    assert ending.reason is not None
    if job.status == JobStatus.STARTING:  # A run too short to have been seen training.
        change_status(session, job, JobStatus.RUNNING, "trained")
    review = _open(session, job, ReviewCause.HELD, step, findings)
    end_attempt(session, job, JobStatus.HELD, ending)
    job.reason = {**ending.reason, "review": review.id}
    change_status(session, job, JobStatus.HELD, f"held: {ending.reason['message']}", {"reason": job.reason})


@dataclass(frozen=True)
class Hold:
    """What a run told before it ended in another way, such as with its machine."""

    reason: Json
    step: int
    findings: list[Json]


def find_hold(session: Session, job: Job) -> Hold | None:
    """An attempt that would go on after its checkpoint would pass over what was found before it."""
    last = repository.find_escalation(session, job)
    if last is None:
        return None
    accepted = repository.list_accepted_findings(session, job.id)
    if not (findings := _drop_accepted(last.open_findings, accepted)):
        return None
    message = f"open findings of the safety checks after step {last.step}: {len(findings)}"
    return Hold({"code": "safety_held", "message": message}, last.step, findings)


def _drop_accepted(findings: Sequence[Json], accepted: Collection[tuple[str, str]]) -> list[Json]:
    return [finding for finding in findings if (finding["probe_id"], finding["check"]) not in accepted]


def request_review(session: Session, job_id: str) -> Review:
    """Of the findings that stand in the way of an adapter's release. Raises Conflict, NotFound."""
    job = repository.lock_job(session, job_id)
    adapter = repository.lock_adapter(session, job)
    if adapter.state == AdapterState.REJECTED:
        raise Conflict("adapter_is_rejected", "the adapter is rejected; that never changes")
    if (review := repository.find_open_review(session, job_id)) is not None:
        raise Conflict("review_is_open", f"{review.id} is open already", review=review.id)
    findings = find_open_findings(session, job)
    if not findings:
        raise Conflict("nothing_to_review", "no finding of the safety checks is open")
    return _open(session, job, ReviewCause.ADAPTER, None, findings)


def find_open_findings(session: Session, job: Job) -> list[Json]:
    """The job's own, and those of the jobs whose weights it began with: rounds of its own do not answer these."""
    accepted = repository.list_accepted_findings(session, job.id, ReviewCause.ADAPTER)
    inherited: list[Json] = []
    for ancestor in repository.list_ancestors(session, job)[0]:
        found = _find_own_findings(session, ancestor)
        if NOT_CHECKED in found:  # It ended early, perhaps because of them.
            for last in repository.list_newest_safety_rounds(session, ancestor.id, 1):
                found += _drop_accepted(last.open_findings, repository.list_accepted_findings(session, ancestor.id))
        inherited += [{**one, "explanation": f"{ancestor.id}: {one.get('explanation', '')}"} for one in found]
    return _find_own_findings(session, job) + _drop_accepted(inherited, accepted)


def _find_own_findings(session: Session, job: Job) -> list[Json]:
    """Of the last attempt's last round, without those that were accepted. Silence is a finding: `not_checked`."""
    last = repository.find_last_safety_round(session, job)
    if last is not None and last.ok:
        return _drop_accepted(last.open_findings, repository.list_accepted_findings(session, job.id))
    # Whoever let a run go on after a round that failed did not mean to release what nobody ever asked anything.
    accepted = repository.list_accepted_findings(session, job.id, ReviewCause.ADAPTER)
    return _drop_accepted([NOT_CHECKED], accepted)


NOT_CHECKED: Json = {
    "probe_id": "",
    "check": "not_checked",
    "severity": "critical",
    "explanation": "no safety check was made after the last step",
}


def approve_review(session: Session, review_id: str, person: Person) -> Review:
    """The first approval waits for a second person's; with that, the findings are accepted and a held job goes on.

    Raises Conflict, NotFound.
    """
    job, review = _lock_open(session, review_id)
    for decision in review.decisions:
        if decision["key_id"] == person.identity.key_id or fold_name(decision["name"]) == fold_name(person.name):
            message = f"{decision['name']} approved it already; a second person, with a key of their own, must, too"
            raise Conflict("second_person_needed", message)
    is_second = bool(review.decisions)
    state = ReviewState.APPROVED if is_second else ReviewState.AWAITING_SECOND
    _decide(session, job, review, state, person)
    if is_second and job.status == JobStatus.HELD:
        job.queued_at = job.not_before = func.now()
        change_status(session, job, JobStatus.QUEUED, f"two persons accepted what was found ({review.id})")
    return review


def reject_review(session: Session, review_id: str, person: Person) -> Review:
    """One person is enough: a held job fails, and an adapter is not to be used. Raises Conflict, NotFound."""
    job, review = _lock_open(session, review_id)
    _decide(session, job, review, ReviewState.REJECTED, person)
    if job.status == JobStatus.HELD:
        reason = {
            "code": FailureReason.SAFETY_REJECTED,
            "message": f"{person.name} rejected what the safety checks found: {person.reason}",
            "remedy": "mend the rows that taught it, and make a new job",
            "review": review.id,
        }
        finish(session, job, JobStatus.FAILED, Ending(reason, Fault.USER))
    elif job.status == JobStatus.SUCCEEDED:
        change_adapter(session, job, repository.lock_adapter(session, job), AdapterState.REJECTED, person)
    return review


def change_adapter(session: Session, job: Job, adapter: Adapter, to: AdapterState, person: Person) -> None:
    """The caller holds both rows' locks and checked that the change is legal."""
    data = {"from": adapter.state, "to": to, "by": person.name, "reason": person.reason}
    adapter.state, adapter.state_at = to, func.now()
    adapter.decisions = [*adapter.decisions, person.decide(to)]
    add_event(session, job, "adapter", f"{person.name}: the adapter is {to}", data)


def _open(session: Session, job: Job, cause: ReviewCause, step: int | None, findings: Sequence[Json]) -> Review:
    review = Review(
        id=new_id("rev"),
        tenant_id=job.tenant_id,
        job_id=job.id,
        cause=cause,
        attempt=job.attempt,
        step=step,
        findings=list(findings),
    )
    session.add(review)
    data = {"review": review.id, "cause": cause, "num_findings": len(findings)}
    add_event(session, job, "review", f"{review.id} is open, findings: {len(findings)}", data)
    return review


def _lock_open(session: Session, review_id: str) -> tuple[Job, Review]:
    job = repository.lock_job(session, repository.get_review(session, review_id).job_id)
    review = repository.lock_review(session, review_id)
    if review.closed_at is not None:
        raise Conflict("review_is_closed", f"the review is {review.state} already", state=review.state)
    return job, review


def _decide(session: Session, job: Job, review: Review, to: ReviewState, person: Person) -> None:
    review.state, review.decisions = to, [*review.decisions, person.decide(to)]
    if to != ReviewState.AWAITING_SECOND:
        review.closed_at = func.now()
    data = {"review": review.id, "to": to, "by": person.name, "reason": person.reason}
    add_event(session, job, "review", f"{person.name}: {review.id} is {to.replace('_', ' ')}", data)
