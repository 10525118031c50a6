"""What the shell completes beside commands and options."""

from medtune import ApiError, Client, ConfigError

_SECONDS = 2
"""Nobody waits longer for a completion."""


def complete_job_ids(incomplete: str) -> list[tuple[str, str]]:
    """The newest jobs, with what tells them apart; none while the service cannot be asked."""
    try:
        with Client() as client:
            client.http.timeout = _SECONDS
            jobs = client.list_jobs(limit=50).data
    except (ApiError, ConfigError):
        return []
    return [(job.id, f"{job.status}, {job.name or job.model}") for job in jobs if job.id.startswith(incomplete)]
