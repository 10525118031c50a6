"""Every status change: the row is locked, the change is checked, and an event follows in the same transaction.

wishes      what a client causes
checks      what the check of a dataset causes
claims      how a worker gets a job
attempts    what it does then, under a lease
recovery    what the reconciler does
changes     the steps of the above
"""

from jobs.lifecycle.attempts import (
    Retries,
    begin_stopping,
    cancel,
    fail,
    find_wish,
    give_back,
    note,
    record_resume,
    remove_checkpoints,
    renew_lease,
    store_checkpoint,
    store_news,
    succeed,
)
from jobs.lifecycle.changes import Ending, Lease, News
from jobs.lifecycle.checks import claim_dataset, finish_dataset, release_datasets
from jobs.lifecycle.claims import Claimant, claim_job
from jobs.lifecycle.recovery import describe_lost_worker, reap_lost_jobs
from jobs.lifecycle.wishes import check_queue_limit, create_job, request_cancel, request_pause, resume

__all__ = [
    "Claimant",
    "Ending",
    "Lease",
    "News",
    "Retries",
    "begin_stopping",
    "cancel",
    "check_queue_limit",
    "claim_dataset",
    "claim_job",
    "create_job",
    "describe_lost_worker",
    "fail",
    "find_wish",
    "finish_dataset",
    "give_back",
    "note",
    "reap_lost_jobs",
    "record_resume",
    "release_datasets",
    "remove_checkpoints",
    "renew_lease",
    "request_cancel",
    "request_pause",
    "resume",
    "store_checkpoint",
    "store_news",
    "succeed",
]
