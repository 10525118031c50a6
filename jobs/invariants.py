"""What must be true of the tables at any moment. Whoever finds a violation has found a bug, or a hand-made change."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

MAX_ROWS = 20

RULES = {
    "an open attempt belongs to a job that has an owner": """
        SELECT a.job_id FROM attempts a JOIN jobs j ON j.id = a.job_id
        WHERE a.ended_at IS NULL AND (j.lease_owner IS NULL OR j.attempt <> a.number)""",
    "a job that has an owner has an open attempt of that owner and epoch": """
        SELECT j.id FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.number = j.attempt AND a.ended_at IS NULL
        WHERE j.lease_owner IS NOT NULL
          AND (a.worker_id, a.lease_epoch) IS DISTINCT FROM (j.lease_owner, j.lease_epoch)""",
    "a job whose status is final has no time limit running": """
        SELECT id FROM jobs WHERE finished_at IS NOT NULL AND deadline_at IS NOT NULL""",
    "a job that succeeded has an adapter, and was verified": """
        SELECT j.id FROM jobs j LEFT JOIN adapters a ON a.job_id = j.id
        WHERE j.status = 'succeeded' AND (a.job_id IS NULL OR (j.verification ->> 'ok') IS DISTINCT FROM 'true')""",
    "only a job that succeeded has an adapter": """
        SELECT j.id FROM adapters a JOIN jobs j ON j.id = a.job_id WHERE j.status <> 'succeeded'""",
    "a cancelled wish ends in a cancelled job": """
        SELECT id FROM jobs WHERE cancel_requested_at IS NOT NULL AND status IN ('succeeded', 'failed')""",
    "a job that is held has an open review, and an open review of a held job belongs to one": """
        SELECT j.id FROM jobs j LEFT JOIN reviews r ON r.job_id = j.id AND r.closed_at IS NULL
        WHERE (j.status = 'held') IS DISTINCT FROM (r.cause IS NOT NULL AND r.cause = 'held')""",
    "a released adapter has no review that nobody approved": """
        SELECT a.job_id FROM adapters a JOIN reviews r ON r.job_id = a.job_id
        WHERE a.state IN ('approved', 'released') AND r.state IN ('open', 'awaiting_second', 'rejected')""",
    "a job that waits for a check waits for one that is not done": """
        SELECT j.id FROM jobs j WHERE j.status = 'validating' AND NOT EXISTS (
            SELECT FROM datasets d
            WHERE d.id IN (j.dataset_id, j.validation_dataset_id) AND d.status = 'validating')""",
    "what was deleted is not there": """
        SELECT d.id FROM deletions d
        WHERE EXISTS (SELECT FROM jobs WHERE id = d.subject_id)
           OR EXISTS (SELECT FROM datasets WHERE id = d.subject_id)""",
}
"""Each query selects the ids of what breaks its rule."""


@dataclass(frozen=True)
class Violation:
    rule: str
    rows: Sequence[str]


def find_violations(session: Session) -> list[Violation]:
    """The broken rules, each with up to MAX_ROWS ids."""
    found = []
    for rule, query in RULES.items():
        rows = session.scalars(text(f"{query} LIMIT {MAX_ROWS}")).all()
        if rows:
            found.append(Violation(rule, rows))
    return found
