"""Sessions on a database of the test's own."""

import pytest

from jobs.api_keys import create_key
from jobs.database import Role, Sessions
from jobs.repository import Identity
from tests.integration.rows import OpenSessions


@pytest.fixture
def api(open_sessions: OpenSessions) -> Sessions:
    return open_sessions(Role.API)


@pytest.fixture
def worker(open_sessions: OpenSessions) -> Sessions:
    return open_sessions(Role.WORKER)


@pytest.fixture
def identity(api: Sessions) -> Identity:
    with api.begin() as session:
        key, _ = create_key(session, b"secret", name="test", tenant_id="a")
        return Identity(key.id, "a", is_admin=True)
