"""Safety checks, reviews and releases, as clients read and write them."""

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from api.pages import ReadModel
from jobs.lifecycle import Person
from jobs.models import Adapter, Json, Review, SafetyRound
from jobs.repository import Identity
from jobs.seen_text import drop_unseen
from jobs.status import AdapterState, ReviewCause, ReviewState

_DROP_UNSEEN = BeforeValidator(lambda value: drop_unseen(value) if isinstance(value, str) else value)


class DecisionBody(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    reviewer: Annotated[str, StringConstraints(min_length=1, max_length=200), _DROP_UNSEEN]
    """The name of the person who decides."""
    reason: Annotated[str, StringConstraints(min_length=20, max_length=2000), _DROP_UNSEEN]
    """Why, for whoever asks later; 20 characters or more."""

    def sign(self, identity: Identity) -> Person:
        return Person(identity, self.reviewer, self.reason)


class DecisionRead(ReadModel):
    to: str
    """What it made of it."""
    name: str
    reason: str
    key_id: str
    at: datetime.datetime


class SafetyRoundRead(ReadModel):
    object: Literal["safety_round"] = "safety_round"
    seq: int
    attempt: int
    step: int
    is_last: bool
    """After the last step, when every probe is asked."""
    ok: bool
    """The answers were judged; false: they could not be, and the message says why."""
    message: str
    summary: dict[str, Any]
    """Versions of probes and rules, seconds, and per check the numbers of the adapter and of its base."""
    num_findings: int
    findings: list[dict[str, Any]]
    """The first of them, critical ones before all others."""
    open_findings: list[dict[str, Any]]
    """Critical ones, and checks that became worse than the base's, that nobody had accepted."""
    escalation: Literal["hold", "stop"] | None
    """What they did to the run."""
    created_at: datetime.datetime


class ReviewRead(ReadModel):
    object: Literal["review"] = "review"
    id: str
    job: str
    cause: ReviewCause
    """`held`: the job waits for it; `adapter`: its adapter's release does."""
    step: int | None
    findings: list[dict[str, Any]]
    state: ReviewState
    decisions: list[DecisionRead]
    opened_at: datetime.datetime
    closed_at: datetime.datetime | None


class Blocker(ReadModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    code: str
    message: str
    remedy: str


class AdapterListed(ReadModel):
    object: Literal["adapter"] = "adapter"
    job: str
    """The id of the job that made it, which is the adapter's too."""
    name: str | None
    model: str
    """The base model that it is for."""
    state: AdapterState
    bytes: int
    """Of the archive."""
    sha256: str
    """Of the archive."""
    url: str
    """Path of the download."""
    created_at: datetime.datetime
    state_at: datetime.datetime


class AdapterDetails(AdapterListed):
    decisions: list[DecisionRead] | None
    """Who approved, released or rejected it, and why; null: another tenant's."""
    blockers: list[Blocker] | None
    """What stands in the way of a release now; null: another tenant's."""


def read_safety_round(row: SafetyRound) -> SafetyRoundRead:
    return SafetyRoundRead.model_validate(row, from_attributes=True)


def read_review(review: Review) -> ReviewRead:
    return ReviewRead(
        id=review.id,
        job=review.job_id,
        cause=review.cause,
        step=review.step,
        findings=review.findings,
        state=review.state,
        decisions=[DecisionRead(**decision) for decision in review.decisions],
        opened_at=review.opened_at,
        closed_at=review.closed_at,
    )


def list_adapter(adapter: Adapter) -> AdapterListed:
    return AdapterListed(**_describe(adapter))


def read_adapter(adapter: Adapter, blockers: list[Json] | None) -> AdapterDetails:
    """`blockers` is null for another tenant's."""
    decisions = None if blockers is None else [DecisionRead(**decision) for decision in adapter.decisions]
    told = None if blockers is None else [Blocker(**blocker) for blocker in blockers]
    return AdapterDetails(**_describe(adapter), decisions=decisions, blockers=told)


def _describe(adapter: Adapter) -> dict[str, Any]:
    return {
        "job": adapter.job_id,
        "name": adapter.name,
        "model": adapter.model,
        "state": adapter.state,
        "bytes": adapter.num_bytes,
        "sha256": adapter.sha256,
        "url": f"/jobs/{adapter.job_id}/adapter",
        "created_at": adapter.created_at,
        "state_at": adapter.state_at,
    }
