"""What a check found, and how it is put into words: without secrets, and short."""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from jobs.settings import Settings

OK, WARNING, ERROR = "ok", "warning", "error"
MANY = 5
"""As many ids are named in one line."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    level: str
    message: str
    remedy: str = ""


def describe(error: SQLAlchemyError) -> str:
    """Without the statement; a URL that cannot be read is not repeated."""
    if isinstance(error, ArgumentError):
        return "MEDTUNE_DATABASE_URL is no URL of a database"
    return " ".join(str(getattr(error, "orig", None) or error).split())


def hide_url(text: str, settings: Settings) -> str:
    """Servers' and stores' libraries may repeat what they were given."""
    for secret in (settings.redis_url, settings.database_url):
        if secret is not None:
            text = text.replace(secret.get_secret_value(), "***")
    return re.sub(r"://[^/\s@]*@", "://***@", " ".join(text.split()))


def name_some(ids: Any) -> str:
    return ", ".join(ids[:MANY]) + (" and more" if len(ids) > MANY else "")
