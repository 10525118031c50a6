"""What decides about a submission, in one statement."""

from typing import Any

from sqlalchemy import ColumnElement, Integer, Row, ScalarSelect, Text, bindparam, case, func, select, true
from sqlalchemy.orm import Session

from jobs.models import Dataset
from jobs.repository.workers import IS_ALIVE_TRAINER, workers
from jobs.statements import Statement
from jobs.status import DatasetStatus

_datasets = Dataset.__table__.c


def _select_column(name: str, column: ColumnElement[Any]) -> ScalarSelect[Any]:
    return select(column).where(_datasets.id == bindparam(name, type_=Text)).scalar_subquery()


_wanted_gpus = bindparam("gpus", type_=Integer)
_largest = select(func.max(workers.num_gpus).label("gpus")).where(*IS_ALIVE_TRAINER).subquery()
# Without a number: one GPU where a living worker has one, else the CPU.
_job_gpus = func.coalesce(_wanted_gpus, func.least(1, func.coalesce(_largest.c.gpus, 0)))
_roomiest = (
    select(workers.gpu_name, workers.gpu_memory_bytes, workers.host_memory_bytes, workers.disk_free_bytes)
    .where(*IS_ALIVE_TRAINER, workers.num_gpus >= _job_gpus)
    # Who does not know its memory may have enough.
    .order_by(
        case((_job_gpus > 0, workers.gpu_memory_bytes)).desc().nulls_first(),
        workers.host_memory_bytes.desc().nulls_first(),
    )
    .limit(1)
    .lateral("roomiest")
)
SUBMISSION_FACTS = Statement(
    select(
        _select_column("dataset_id", _datasets.status).label("dataset_status"),
        _select_column("dataset_id", _datasets.num_rows).label("dataset_rows"),
        _select_column("dataset_id", _datasets.report["statistics"]).label("dataset_statistics"),
        _select_column("validation_id", _datasets.status).label("validation_status"),
        _largest.c.gpus.label("largest_worker"),
        _job_gpus.label("num_gpus"),
        *_roomiest.c,
    ).select_from(_largest.outerjoin(_roomiest, true()))
)
_LOCK_DATASETS = (
    select(_datasets.id).where(_datasets.id.in_(bindparam("ids", expanding=True))).with_for_update(read=True)
)


def get_submission_facts(
    session: Session, dataset_id: str | None, validation_id: str | None, gpus: int | None
) -> Row[Any]:
    """What decides about a job on `gpus` GPUs (None: one where there is one).

    `dataset_status` and `validation_status` (null: none such, or none yet), `dataset_rows` and `dataset_statistics`
    (null: not checked), `largest_worker`'s GPUs (null: none lives), the job's `num_gpus`, and the hardware of the
    worker with the most memory among those that have so many (null: unknown).

    A dataset that is validating is locked until the transaction's end: else its check could end unseen, and the job
    would wait for it for ever.
    """
    wanted = {"dataset_id": dataset_id, "validation_id": validation_id, "gpus": gpus}
    facts = SUBMISSION_FACTS.one(session, **wanted)
    if DatasetStatus.VALIDATING not in (facts.dataset_status, facts.validation_status):
        return facts
    session.execute(_LOCK_DATASETS, {"ids": [dataset_id, validation_id]})
    return SUBMISSION_FACTS.one(session, **wanted)
