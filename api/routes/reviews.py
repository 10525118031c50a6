"""What the safety checks found waits for a decision here."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import ServicesDep, TransactionDep
from api.pages import Page
from api.safety_schemas import DecisionBody, ReviewRead, read_review
from jobs import lifecycle, repository
from jobs.status import ReviewState
from jobs.task_queue import Queue

router = APIRouter(prefix="/reviews", tags=["reviews"])


@router.get("", summary="List reviews, newest first")
def list_reviews(
    transaction: TransactionDep,
    state: ReviewState | None = None,
    job: Annotated[str | None, Query(description="Only this job's.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(description="The last review's id of the page before.")] = None,
) -> Page[ReviewRead]:
    with transaction as caller:
        caller.object_id = caller.object_id or job
        reviews = repository.list_reviews(caller.session, limit=limit + 1, after=after, state=state, job_id=job)
        return Page(data=[read_review(review) for review in reviews[:limit]], has_more=len(reviews) > limit)


@router.get("/{review_id}", summary="One review, with its findings and decisions")
def get_review(review_id: str, transaction: TransactionDep) -> ReviewRead:
    with transaction as caller:
        return read_review(repository.get_review(caller.session, review_id))


@router.post("/{review_id}/approve", summary="Accept the findings, in spite of what they are")
def approve_review(
    review_id: str, body: DecisionBody, transaction: TransactionDep, services: ServicesDep
) -> ReviewRead:
    """It takes two persons with a key each. After the second, a held job is queued again and goes on.

    409 for the same person or key twice, and when the review is closed.
    """
    with transaction as caller:
        review = read_review(lifecycle.approve_review(caller.session, review_id, body.sign(caller.identity)))
    if review.state == ReviewState.APPROVED:
        services.doorbell.ring(Queue.TRAIN)
    return review


@router.post("/{review_id}/reject", summary="Reject the job or the adapter because of its findings")
def reject_review(review_id: str, body: DecisionBody, transaction: TransactionDep) -> ReviewRead:
    """One person is enough: a held job fails, an adapter is rejected. 409 when the review is closed."""
    with transaction as caller:
        return read_review(lifecycle.reject_review(caller.session, review_id, body.sign(caller.identity)))
