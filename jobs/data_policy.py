"""What the identifiers of patients in a dataset mean for it, and for the adapters that are trained on it."""

import datetime
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from jobs.errors import Conflict, InvalidRequest
from jobs.models import Dataset, Json
from jobs.repository import Identity
from jobs.seen_text import drop_unseen
from jobs.settings import Settings
from jobs.status import DatasetStatus, OverlapPolicy, PhiPolicy
from trainer_core.data.phi.strategy import Strategy

MIN_STATEMENT = 20
MAX_STATEMENT = 2000
MAX_NAME = 200


def build_attestation(identity: Identity, name: str | None, statement: str | None) -> Json:
    """A named person's word for a dataset. Raises InvalidRequest."""
    _check_text("attested_by", name, 1, MAX_NAME)
    _check_text("attestation", statement, MIN_STATEMENT, MAX_STATEMENT)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"name": name, "statement": statement, "key_id": identity.key_id, "at": now}


def attest(dataset: Dataset, attestation: Json) -> None:
    """Of what was found. It is given once, and stays. Raises Conflict."""
    if dataset.status == DatasetStatus.VALIDATING:
        raise Conflict("dataset_not_checked", "the check is not done yet; poll the dataset's status")
    if dataset.attestation is not None:
        raise Conflict("already_attested", f"{dataset.attestation['name']} attested this dataset already")
    if dataset.status == DatasetStatus.REJECTED or not count_findings(dataset):
        raise Conflict("nothing_to_attest", "no identifier was found, or the dataset was rejected")
    dataset.attestation = attestation


def count_findings(dataset: Dataset) -> int | None:
    """Identifiers of patients, and rows that could not be searched for them; None: nobody looked."""
    phi = (dataset.report or {}).get("phi")
    return None if phi is None else int(phi["num_findings"] + phi["unreadable_rows"])


def find_release_blocker(dataset: Dataset) -> str | None:
    """Why what was trained on it may not be released, as far as its identifiers go; None: nothing is in the way."""
    if dataset.attestation is not None:
        return None
    findings = count_findings(dataset)
    if findings is None:
        return "nobody looked for identifiers in its rows"
    if findings:
        return f"{findings} identifiers were found in its rows, and nobody attested for them"
    return None


_ONLY_WITH = {
    "attested_by": (PhiPolicy.OFF, "; otherwise attest what was found, after the check"),
    "attestation": (PhiPolicy.OFF, "; otherwise attest what was found, after the check"),
    "phi_strategy": (PhiPolicy.REPLACE, ""),
    "patient_key": (PhiPolicy.REPLACE, ""),
}


def build_policies(identity: Identity, settings: Settings, texts: Mapping[str, str]) -> Json:
    """The columns of a new dataset that say what becomes of findings; `texts` are the upload's. Raises
    InvalidRequest.
    """
    policy = _choose("phi_policy", PhiPolicy, texts.get("phi_policy", settings.phi_policy))
    for field, (wanted, instead) in _ONLY_WITH.items():
        if field in texts and policy != wanted:
            raise InvalidRequest("field_without_use", f"{field}: only with phi_policy={wanted}{instead}", param=field)
    overlap_policy = _choose("overlap_policy", OverlapPolicy, texts.get("overlap_policy", settings.overlap_policy))
    columns: Json = {"phi_policy": policy, "overlap_policy": overlap_policy}
    if policy == PhiPolicy.OFF:
        columns["attestation"] = build_attestation(identity, texts.get("attested_by"), texts.get("attestation"))
    elif policy == PhiPolicy.REPLACE:
        columns["phi_strategy"] = _choose("phi_strategy", Strategy, texts.get("phi_strategy", Strategy.SAFE_HARBOR))
        columns["patient_key"] = texts.get("patient_key")
        if "patient_key" in texts:
            _check_text("patient_key", texts["patient_key"], 1, MAX_NAME, "invalid_field")
    return columns


def _check_text(
    field: str, value: str | None, shortest: int, longest: int, code: str = "attestation_incomplete"
) -> None:
    text = drop_unseen(value or "")
    if not shortest <= len(text) <= longest or "\0" in text:
        message = f"{field}: between {shortest} and {longest} characters"
        raise InvalidRequest(code, message, param=field)


Choice = TypeVar("Choice", bound=StrEnum)


def _choose(field: str, choices: type[Choice], value: str) -> Choice:
    try:
        return choices(value)
    except ValueError:
        message = f"{field}: one of {', '.join(choices)}"
        raise InvalidRequest("invalid_field", message, param=field) from None
