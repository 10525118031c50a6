"""What a webhook says, and its signature, by the scheme of Standard Webhooks (https://www.standardwebhooks.com)."""

import base64
import datetime
import hashlib
import hmac
import json
from collections.abc import Iterable

from jobs.status import JobStatus

TEST_TYPE = "webhook.test"
TOLD_STATUSES = frozenset(
    {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.HELD, JobStatus.PAUSED}
)
"""A job that is now one of these is told about: it is over, or waits for somebody."""


def name_type(status: JobStatus) -> str:
    return f"fine_tuning.job.{status}"


def build_body(event_id: str, type_: str, created_at: datetime.datetime, subject_id: str) -> bytes:
    """The same bytes at each try. `subject_id`: a job's, or for a test the endpoint's."""
    data = {"id": subject_id}
    if subject_id.startswith("job_"):
        data = {"id": f"ft{subject_id.replace('_', '-', 1)}", "medtune_id": subject_id}
    created = int(created_at.timestamp())
    body = {"object": "event", "id": event_id, "type": type_, "created_at": created, "data": data}
    return json.dumps(body, separators=(",", ":")).encode()


def derive_secret(secret_key: bytes, endpoint_id: str, version: int) -> str:
    """As its owner gets it, once; nowhere is it stored, so that who reads the database cannot sign.

    No API key has a zero byte, so that this is the hash of none.
    """
    secret = hmac.digest(secret_key, f"\0webhook\0{endpoint_id}\0{version}".encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(secret).decode()


def hash_secret(secret: str) -> bytes:
    """Tells whether a derived secret is the one that was shown; it has 256 random bits, so that nobody can guess it."""
    return hashlib.sha256(secret.encode()).digest()


def sign(body: bytes, event_id: str, secrets: Iterable[str], now: datetime.datetime) -> dict[str, str]:
    """The headers, with a signature by each secret: a receiver needs to know one of them."""
    timestamp = int(now.timestamp())
    content = f"{event_id}.{timestamp}.".encode() + body
    keys = [base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets]
    signatures = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
