"""Rounds of safety checks, reviews of what they found, and the adapters that wait for them."""

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from jobs.errors import NotFound
from jobs.models import Adapter, Job, Review, SafetyRound
from jobs.repository.pages import page_of_newest
from jobs.status import AdapterState, ReviewCause, ReviewState


def list_safety_rounds(session: Session, job_id: str, *, after: int, limit: int) -> Sequence[SafetyRound]:
    query = select(SafetyRound).where(SafetyRound.job_id == job_id, SafetyRound.seq > after)
    return session.scalars(query.order_by(SafetyRound.seq).limit(limit)).all()


def list_newest_safety_rounds(session: Session, job_id: str, limit: int) -> Sequence[SafetyRound]:
    """The oldest of them first."""
    newest = select(SafetyRound).where(SafetyRound.job_id == job_id).order_by(SafetyRound.seq.desc()).limit(limit)
    return session.scalars(newest).all()[::-1]


def find_last_safety_round(session: Session, job: Job) -> SafetyRound | None:
    """The round after the last step of the job's last attempt."""
    is_it = (SafetyRound.job_id == job.id, SafetyRound.attempt == job.attempt, SafetyRound.is_last)
    return session.scalar(select(SafetyRound).where(*is_it).order_by(SafetyRound.seq.desc()).limit(1))


def find_escalation(session: Session, job: Job) -> SafetyRound | None:
    """The newest round of the job's last attempt, if it was to hold the run."""
    newest = select(SafetyRound).where(SafetyRound.job_id == job.id, SafetyRound.attempt == job.attempt)
    last = session.scalar(newest.order_by(SafetyRound.seq.desc()).limit(1))
    return last if last is not None and last.escalation == "hold" else None


def get_review(session: Session, review_id: str) -> Review:
    return _one(session, review_id, select(Review))


def lock_review(session: Session, review_id: str) -> Review:
    """As it is now, whatever this session read of it before."""
    return _one(session, review_id, select(Review).with_for_update().execution_options(populate_existing=True))


def find_open_review(session: Session, job_id: str) -> Review | None:
    return session.scalar(select(Review).where(Review.job_id == job_id, Review.closed_at.is_(None)))


def list_reviews(
    session: Session, *, limit: int, after: str | None, state: ReviewState | None = None, job_id: str | None = None
) -> Sequence[Review]:
    """Newest first."""
    query = select(Review)
    if state is not None:
        query = query.where(Review.state == state)
    if job_id is not None:
        query = query.where(Review.job_id == job_id)
    return session.scalars(page_of_newest(query, Review.id, after, limit)).all()


def list_accepted_findings(session: Session, job_id: str, cause: ReviewCause | None = None) -> set[tuple[str, str]]:
    """Probe and check of what two persons accepted; with a cause, in reviews of that alone."""
    approved = select(Review.findings).where(Review.job_id == job_id, Review.state == ReviewState.APPROVED)
    if cause is not None:
        approved = approved.where(Review.cause == cause)
    return {(finding["probe_id"], finding["check"]) for found in session.scalars(approved) for finding in found}


def lock_adapter(session: Session, job: Job) -> Adapter:
    query = select(Adapter).where(Adapter.job_id == job.id).with_for_update()
    adapter = session.scalar(query.execution_options(populate_existing=True))
    if adapter is None:
        raise NotFound("adapter_not_found", f"the job is {job.status}; only a succeeded job has an adapter")
    return adapter


def list_adapters(
    session: Session, *, limit: int, after: str | None, state: AdapterState | None = None
) -> Sequence[Adapter]:
    """The tenant's own, and those that anybody released; newest job first."""
    query = select(Adapter)
    if state is not None:
        query = query.where(Adapter.state == state)
    return session.scalars(page_of_newest(query, Adapter.job_id, after, limit)).all()


def _one(session: Session, review_id: str, query: Select[Review]) -> Review:
    review = session.scalar(query.where(Review.id == review_id))
    if review is None:
        raise NotFound("review_not_found", f"there is no review {review_id!r}")
    return review
