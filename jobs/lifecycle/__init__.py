"""Every status change: the row is locked, the change is checked, and an event follows in the same transaction.

wishes      what a client causes
checks      what the check of a dataset causes
claims      how a worker gets a job
attempts    what it does then, under a lease
recovery    what the reconciler does
reviews     what people decide about findings of the safety checks
releases    what people decide about adapters
deliveries  what webhooks are told of it
deletions   what goes for good, and the record of it
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
    store_rows,
    succeed,
)
from jobs.lifecycle.changes import Ending, Lease, News
from jobs.lifecycle.checks import (
    CHECK_BYTES_PER_SECOND,
    CleanRows,
    RowHashes,
    claim_dataset,
    finish_dataset,
    forget_leftovers,
    note_obstacle,
    release_datasets,
    renew_dataset,
    size_dataset,
)
from jobs.lifecycle.claims import Claimant, claim_job
from jobs.lifecycle.deletions import (
    compute_record_hash,
    delete_dataset,
    delete_job,
    note_files,
    note_files_deleted,
    note_work_folder_deleted,
)
from jobs.lifecycle.deliveries import claim_deliveries, forget_deliveries, record_delivery, send_test
from jobs.lifecycle.exports import (
    check_exportable,
    claim_export,
    fail_export,
    finish_export,
    release_export,
    renew_export,
    request_export,
)
from jobs.lifecycle.recovery import describe_lost_worker, reap_lost_jobs
from jobs.lifecycle.releases import approve_adapter, find_blockers, reject_adapter, release_adapter
from jobs.lifecycle.reviews import Person, approve_review, hold, reject_review, request_review
from jobs.lifecycle.wishes import check_queue_limit, create_job, request_cancel, request_pause, resume

__all__ = [
    "CHECK_BYTES_PER_SECOND",
    "Claimant",
    "CleanRows",
    "Ending",
    "Lease",
    "News",
    "Person",
    "Retries",
    "RowHashes",
    "approve_adapter",
    "approve_review",
    "begin_stopping",
    "cancel",
    "check_exportable",
    "check_queue_limit",
    "claim_dataset",
    "claim_deliveries",
    "claim_export",
    "claim_job",
    "compute_record_hash",
    "create_job",
    "delete_dataset",
    "delete_job",
    "describe_lost_worker",
    "fail",
    "fail_export",
    "find_blockers",
    "find_wish",
    "finish_dataset",
    "finish_export",
    "forget_deliveries",
    "forget_leftovers",
    "give_back",
    "hold",
    "note",
    "note_files",
    "note_files_deleted",
    "note_obstacle",
    "note_work_folder_deleted",
    "reap_lost_jobs",
    "record_delivery",
    "record_resume",
    "reject_adapter",
    "reject_review",
    "release_adapter",
    "release_datasets",
    "release_export",
    "remove_checkpoints",
    "renew_dataset",
    "renew_export",
    "renew_lease",
    "request_cancel",
    "request_export",
    "request_pause",
    "request_review",
    "resume",
    "send_test",
    "size_dataset",
    "store_checkpoint",
    "store_news",
    "store_rows",
    "succeed",
]
