"""Adapters: what stands in the way of a release, and the decisions on that way."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.dependencies import Caller, TransactionDep
from api.idempotency import SendingDep, claim
from api.pages import Page
from api.safety_schemas import (
    AdapterDetails,
    AdapterListed,
    DecisionBody,
    ReviewRead,
    list_adapter,
    read_adapter,
    read_review,
)
from jobs import lifecycle, repository
from jobs.models import Adapter
from jobs.status import AdapterState

router = APIRouter(prefix="/adapters", tags=["adapters"])


@router.get("", summary="List adapters, newest first")
def list_adapters(
    transaction: TransactionDep,
    state: AdapterState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: Annotated[str | None, Query(description="The last adapter's job of the page before.")] = None,
) -> Page[AdapterListed]:
    """The own ones, and those that were released, whoever made them."""
    with transaction as caller:
        adapters = repository.list_adapters(caller.session, limit=limit + 1, after=after, state=state)
        return Page(data=[list_adapter(adapter) for adapter in adapters[:limit]], has_more=len(adapters) > limit)


@router.get("/{job_id}", summary="One adapter, with what stands in the way of its release")
def get_adapter(job_id: str, transaction: TransactionDep) -> AdapterDetails:
    with transaction as caller:
        adapter = repository.get_adapter(caller.session, job_id)
        if adapter.tenant_id != caller.identity.tenant_id:
            return read_adapter(adapter, None)
        return _read(caller.session, adapter)


@router.post("/{job_id}/review", status_code=201, summary="Let people decide about open findings")
def request_review(job_id: str, transaction: TransactionDep, sending: SendingDep) -> ReviewRead:
    """409 when nothing is open, or a review is open already."""
    with transaction as caller:
        first = claim(caller, sending, "")
        if first.answer is not None:
            return ReviewRead.model_validate_json(first.answer)
        review = lifecycle.request_review(caller.session, job_id)
        caller.session.refresh(review)
        answer = read_review(review)
        first.keep(answer.model_dump_json())
        return answer


@router.post("/{job_id}/approve", summary="Approve a candidate")
def approve_adapter(job_id: str, body: DecisionBody, transaction: TransactionDep) -> AdapterDetails:
    """409 while anything stands in the way: verification, identifiers in the data, findings of the safety checks."""
    with transaction as caller:
        return _decide(caller, lifecycle.approve_adapter(caller.session, job_id, body.sign(caller.identity)))


@router.post("/{job_id}/release", summary="Release an approved adapter, for everybody who may use this service")
def release_adapter(job_id: str, body: DecisionBody, transaction: TransactionDep) -> AdapterDetails:
    """409 while anything stands in the way, as for an approval."""
    with transaction as caller:
        return _decide(caller, lifecycle.release_adapter(caller.session, job_id, body.sign(caller.identity)))


@router.post("/{job_id}/reject", summary="Reject an adapter, or withdraw a released one")
def reject_adapter(job_id: str, body: DecisionBody, transaction: TransactionDep) -> AdapterDetails:
    """It can be downloaded by its own tenant still, and never be released again."""
    with transaction as caller:
        return _decide(caller, lifecycle.reject_adapter(caller.session, job_id, body.sign(caller.identity)))


def _decide(caller: Caller, adapter: Adapter) -> AdapterDetails:
    caller.session.flush()
    caller.session.refresh(adapter)
    return _read(caller.session, adapter)


def _read(session: Session, adapter: Adapter) -> AdapterDetails:
    return read_adapter(adapter, lifecycle.find_blockers(session, repository.get_job(session, adapter.job_id)))
