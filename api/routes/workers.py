"""Workers that live."""

from fastapi import APIRouter

from api.dependencies import TransactionDep
from api.pages import Page
from api.schemas import WorkerRead, read_worker
from jobs import repository

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", summary="List workers that live")
def list_workers(transaction: TransactionDep) -> Page[WorkerRead]:
    """The oldest first. They serve all tenants. One that was not seen for a minute is not among them."""
    with transaction as caller:
        workers = repository.list_workers(caller.session)
        return Page(data=[read_worker(worker) for worker in workers], has_more=False)
