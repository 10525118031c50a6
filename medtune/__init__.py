"""The Python client of medtune: `from medtune import Client`.

What it takes and gives are the models that the service itself is made of.
"""

from api.history_schemas import EventRead, LogChunkRead, MetricRead
from api.pages import Page
from api.plan_schemas import PlanRead
from api.schemas import DatasetRead, JobRead
from jobs.spec import JobSpec
from jobs.status import DatasetStatus, JobStatus
from medtune.client import Client
from medtune.config import ConfigError
from medtune.connection import ApiError

__all__ = [
    "ApiError",
    "Client",
    "ConfigError",
    "DatasetRead",
    "DatasetStatus",
    "EventRead",
    "JobRead",
    "JobSpec",
    "JobStatus",
    "LogChunkRead",
    "MetricRead",
    "Page",
    "PlanRead",
]
