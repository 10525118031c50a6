"""What each job becomes here, or why it is not taken: from the export and the table alone, without a service."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cli.openai_import.export import Export, ExportedJob, NoContent
from cli.openai_import.table import Table
from jobs.errors import InvalidRequest
from jobs.openai_hyperparameters import HyperparametersBody, translate
from jobs.submission import build_spec

Json = dict[str, Any]

_ANY_DATASET = {"id": "ds_" + "0" * 26}
"""In the place of rows that are not uploaded yet."""


@dataclass(frozen=True)
class Taken:
    """A job that can be made here."""

    job: ExportedJob
    request: Json
    """For `POST /jobs`, but for the rows."""
    training: Path
    validation: Path | None


@dataclass(frozen=True)
class Refused:
    job: ExportedJob
    code: str
    reason: str


@dataclass(frozen=True)
class Import:
    taken: list[Taken]
    refused: list[Refused]
    unmapped: Counter[str]
    """Models that the table says nothing of, by how many of the jobs name them that could be taken."""


class _Refusal(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def plan_import(export: Export, table: Table) -> Import:
    plan = Import([], [], Counter())
    for job in export.jobs.values():
        try:
            plan.taken.append(_plan_job(job, export, table))
        except _Refusal as refusal:
            plan.refused.append(Refused(job, refusal.code, refusal.reason))
            if refusal.code == "model_not_mapped":
                plan.unmapped[job.model] += 1
    return plan


def _plan_job(job: ExportedJob, export: Export, table: Table) -> Taken:
    method = job.method.type if job.method else "supervised"
    if method != "supervised":
        raise _Refusal("method_not_supported", f"method {method}: only supervised is carried out")
    try:
        training = export.get_content(job.training_file)
        validation = export.get_content(job.validation_file) if job.validation_file else None
    except NoContent as error:
        raise _Refusal("file_missing", str(error)) from None
    model = table.find_model(job.model)
    settings = {**table.training, **translate(_read_hyperparameters(job), job.seed, table.get_rules())}
    request: Json = {"model": model or job.model, "metadata": _label(job), "training": settings}
    if suffix := job.suffix or job.user_provided_suffix or _read_suffix(job.fine_tuned_model):
        request["name"] = suffix
    try:
        build_spec({**request, "dataset": _ANY_DATASET})
    except InvalidRequest as error:
        raise _Refusal(error.code, error.message) from None
    if model is None:
        raise _Refusal("model_not_mapped", f"the table has no model in the place of {job.model}")
    return Taken(job, request, training, validation)


def _read_hyperparameters(job: ExportedJob) -> HyperparametersBody:
    supervised = (job.method.supervised if job.method else None) or {}
    given = supervised.get("hyperparameters") or job.hyperparameters or {}
    try:
        return HyperparametersBody.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"][:1]))
        raise _Refusal("invalid_field", f"hyperparameters.{field}: {first['msg']}") from None


def _read_suffix(fine_tuned_model: str | None) -> str | None:
    """Of `ft:BASE:ORGANISATION:SUFFIX:ID`."""
    parts = (fine_tuned_model or "").split(":")
    return parts[3] or None if len(parts) == 5 else None


def _label(job: ExportedJob) -> Json:
    labels = {**(job.metadata or {}), "openai_job": job.id, "openai_file": job.training_file}
    if job.validation_file:
        labels["openai_validation_file"] = job.validation_file
    return labels
