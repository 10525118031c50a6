"""What an API key may do. `api.scopes` says which route wants which."""

from enum import StrEnum


class Scope(StrEnum):
    """Each is one right within the key's own tenant, but for the last."""

    JOBS_READ = "jobs:read"
    """Jobs with their logs, metrics, events and safety rounds, reviews, and plans of jobs."""
    JOBS_WRITE = "jobs:write"
    """Create, pause, resume, cancel, retry and delete jobs."""
    DATASETS_READ = "datasets:read"
    """Datasets, their reports, and which dataset has a row."""
    DATASETS_WRITE = "datasets:write"
    """Upload, answer for and delete datasets."""
    ADAPTERS_READ = "adapters:read"
    """Adapters, their provenance, and their weights."""
    ADAPTERS_RELEASE = "adapters:release"
    """Approve, release and reject adapters."""
    REVIEWS_DECIDE = "reviews:decide"
    """Ask for reviews of safety findings, and decide them."""
    AUDIT_READ = "audit:read"
    """The tenant's audit log, and records of deletions."""
    KEYS_MANAGE = "keys:manage"
    """Make, list, rotate and revoke the tenant's keys; none that may more than this one."""
    ADMIN = "admin"
    """All of the above, and what concerns every tenant: workers, base models, priorities above 0."""


DEFAULT_SCOPES = frozenset(Scope) - {Scope.KEYS_MANAGE, Scope.ADMIN}
"""Of a key that was made without a word about it: all work within its tenant."""
