"""Ids as OpenAI's clients know them: another prefix before the same 26 characters, and nothing to look up.

| theirs | ours |
|---|---|
| `file-…` | `ds_…` |
| `file-…-metrics`, `file-…-adapter` | result files of `job_…` |
| `ftjob-…` | `job_…` |
| `ftevent-…` | `evt_…`; with `-N` behind it the metrics N of `job_…` |
| `ftckpt_…` | `ckpt_…` |
| `ft:MODEL:TENANT:SUFFIX:…` | the adapter of `job_…` |
"""

import re
from enum import StrEnum

from jobs.errors import InvalidRequest, NotFound

_BODY = "([0-9A-HJKMNP-TV-Z]{26})"
_JOB = re.compile(f"ftjob-{_BODY}")
_DATASET = re.compile(f"file-{_BODY}")
_CHECKPOINT = re.compile(f"ftckpt_{_BODY}")
_EVENT = re.compile(f"ftevent-{_BODY}(?:-([0-9]{{1,18}}))?")
_MODEL = re.compile(f"ft:.+:{_BODY}", re.DOTALL)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_SUFFIX = 64


class Result(StrEnum):
    METRICS = "metrics"
    ADAPTER = "adapter"


def write_job_id(job_id: str) -> str:
    return f"ftjob-{_cut(job_id)}"


def read_job_id(text: str) -> str:
    """Raises NotFound."""
    if (match := _JOB.fullmatch(text)) is None:
        raise NotFound("job_not_found", f"there is no fine-tuning job {text!r}; their ids begin with ftjob-")
    return f"job_{match[1]}"


def write_file_id(dataset_id: str) -> str:
    return f"file-{_cut(dataset_id)}"


def read_file_id(text: str, param: str | None = None) -> str:
    """Of a dataset. Raises NotFound."""
    if (match := _DATASET.fullmatch(text)) is None:
        raise NotFound("file_not_found", f"there is no file {text!r} of rows; their ids are file-…", param=param)
    return f"ds_{match[1]}"


def write_result_id(job_id: str, result: Result) -> str:
    return f"file-{_cut(job_id)}-{result}"


def read_result_id(text: str) -> str:
    """The job, of a result file's id without its last word. Raises NotFound."""
    if (match := _DATASET.fullmatch(text)) is None:
        raise NotFound("file_not_found", f"there is no file {text!r} of a job's results")
    return f"job_{match[1]}"


def write_event_id(event_id: str) -> str:
    return f"ftevent-{_cut(event_id)}"


def write_metric_id(job_id: str, seq: int) -> str:
    return f"ftevent-{_cut(job_id)}-{seq}"


def read_event_id(text: str) -> str | int:
    """An event's id, or the number of metrics. Raises InvalidRequest."""
    if (match := _EVENT.fullmatch(text)) is None:
        raise refuse_cursor(text)
    return f"evt_{match[1]}" if match[2] is None else int(match[2])


def write_checkpoint_id(checkpoint_id: str) -> str:
    return f"ftckpt_{_cut(checkpoint_id)}"


def write_model_id(model: str, tenant_id: str, name: str | None, job_id: str) -> str:
    """`name` is the job's, which is the suffix of who made it through this API."""
    suffix = _NOT_IN_A_NAME.sub("-", name or "")[:_LONGEST_SUFFIX]
    return f"ft:{model}:{tenant_id}:{suffix}:{_cut(job_id)}"


def find_job_of_model(text: str) -> str | None:
    """None: it is not the id of a fine-tuned model."""
    match = _MODEL.fullmatch(text)
    return None if match is None else f"job_{match[1]}"


def read_cursor(text: str | None, pattern: str, prefix: str) -> str | None:
    """`after` of a list, in our own ids. Raises InvalidRequest."""
    if text is None:
        return None
    if (match := re.fullmatch(f"{pattern}{_BODY}", text)) is None:
        raise refuse_cursor(text)
    return f"{prefix}{match[1]}"


def refuse_cursor(text: str) -> InvalidRequest:
    return InvalidRequest("invalid_field", f"after: {text!r} is no id of this list", param="after")


def _cut(our_id: str) -> str:
    return our_id.rpartition("_")[2]
