"""When keys were last used: written once a minute, and not at every request."""

import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from jobs.api_keys import USE_SECONDS, record_use
from jobs.database import Sessions

logger = logging.getLogger(__name__)


class KeyUses:
    """What this process wrote lately. Several threads may write the same; nothing bad follows."""

    def __init__(self) -> None:
        self._written_at: dict[str, float] = {}

    def note(self, sessions: Sessions, key_id: str) -> None:
        """In a transaction of its own, after the request's: reading must not fail because writing does."""
        now = time.monotonic()
        if now - self._written_at.get(key_id, -USE_SECONDS) < USE_SECONDS:
            return
        self._written_at[key_id] = now
        try:
            with sessions.begin() as session:
                record_use(session, key_id)
        except SQLAlchemyError as error:
            logger.warning("the last use of key %s was not written: %s", key_id, error)
