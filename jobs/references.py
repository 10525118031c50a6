"""References: names of files in the folders and buckets that the operator opened (MEDTUNE_DATA_ROOTS).

Here they are judged by their letters alone, and nothing is opened; a worker fetches the bytes (worker/references.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from jobs import audit_log
from jobs.data_policy import build_policies
from jobs.errors import InvalidRequest
from jobs.ids import new_id
from jobs.models import Dataset, build_store_folder
from jobs.repository import Identity
from jobs.settings import Settings
from jobs.status import DatasetStatus

MAX_URI = 1024
_SCHEMES = ("file://", "s3://")
_FORBIDDEN = re.compile(r"[\\%;?#*\[\]]")
"""What some reader of addresses takes for something else than a letter of a name."""


@dataclass(frozen=True)
class Reference:
    """A file below a root."""

    root: str
    """As the operator wrote it, without a slash at its end: a folder, or `s3://bucket/prefix`."""
    names: tuple[str, ...]
    """The folders below it, and the file's name."""


def parse_reference(uri: str, roots: Sequence[str], param: str) -> Reference:
    """Raises InvalidRequest."""
    if not roots:
        raise InvalidRequest(
            "references_are_off",
            f"{param}: this service takes no references",
            param=param,
            remedy="Upload the file, or ask the operator to set MEDTUNE_DATA_ROOTS.",
        )
    scheme = next((scheme for scheme in _SCHEMES if uri.startswith(scheme)), None)
    path = uri.removeprefix("file://")
    if scheme is None or (scheme == "file://" and not path.startswith("/")):
        raise _invalid(param, "write file:///folder/file or s3://bucket/key")
    if len(uri) > MAX_URI or not uri.isprintable() or _FORBIDDEN.search(uri):
        raise _invalid(param, rf"up to {MAX_URI} printable characters, and none of \ % ; ? # * [ ]")
    if {"", ".", ".."} & set(path.removeprefix("s3://").removeprefix("/").split("/")):
        raise _invalid(param, "every part between slashes is a name, and neither empty nor dots")
    for root in roots:
        if path.startswith(f"{root}/"):
            return Reference(root, tuple(path.removeprefix(f"{root}/").split("/")))
    raise InvalidRequest(
        "reference_outside_roots",
        f"{param}: it is in none of the folders and buckets that the operator opened to datasets",
        param=param,
        remedy="Upload the file, or ask the operator for the places in MEDTUNE_DATA_ROOTS.",
    )


def create_referenced_dataset(
    session: Session,
    identity: Identity,
    settings: Settings,
    uri: str,
    *,
    param: str,
    name: str | None = None,
    policies: Mapping[str, str] | None = None,
) -> Dataset:
    """A row whose bytes the worker that checks it brings into the store. Raises InvalidRequest."""
    reference = parse_reference(uri, settings.data_roots, param)
    columns = build_policies(identity, settings, policies or {})
    dataset_id, filename = new_id("ds"), reference.names[-1][:200]
    dataset = Dataset(
        id=dataset_id,
        tenant_id=identity.tenant_id,
        name=name or filename,
        filename=filename,
        uri=uri,
        store_key=f"{build_store_folder(dataset_id)}/data",
        num_bytes=0,
        sha256="",
        status=DatasetStatus.VALIDATING,
        created_by=identity.key_id,
        **columns,
    )
    session.add(dataset)
    session.flush()
    told = {field: columns[field] for field in ("phi_policy", "phi_strategy") if field in columns}
    who = {"tenant_id": identity.tenant_id, "actor": identity.key_id}
    audit_log.record(session, **who, action="create_dataset", object_id=dataset_id, uri=uri, **told)
    return dataset


def _invalid(param: str, rule: str) -> InvalidRequest:
    return InvalidRequest("invalid_reference", f"{param}: {rule}", param=param)
