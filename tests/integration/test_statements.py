"""Statements on the driver's own cursor behave as SQLAlchemy's do."""

from contextlib import ExitStack

import pytest
from sqlalchemy import bindparam, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError, OperationalError

from jobs.database import Sessions
from jobs.models import AuditHead
from jobs.statements import Statement
from tests.integration.rows import OpenSessions

_heads = AuditHead.__table__.c
WHO = Statement(select(func.pg_backend_pid().label("pid"), literal("100 %").label("note")))
ADD = Statement(
    insert(AuditHead).values(tenant_id=bindparam("tenant", type_=_heads.tenant_id.type), seq=0, hash=literal(b""))
)
FIND = Statement(select(_heads.seq).where(_heads.tenant_id == bindparam("tenant")))


@pytest.fixture
def sessions(open_sessions: OpenSessions) -> Sessions:
    return open_sessions(None)


def test_rows_have_names_and_json_goes_there_and_back(sessions: Sessions) -> None:
    values = {"rows": [1, None, "é"], "of": {"a": True}}
    echo = Statement(select(bindparam("values", type_=JSONB).label("values")))
    with sessions.begin() as session:
        assert echo.one(session, values=values).values == values
        assert WHO.one(session).note == "100 %"
        assert FIND.first(session, tenant="nobody") is None


def test_an_error_is_one_of_sqlalchemys_and_the_connection_goes_on(sessions: Sessions) -> None:
    with sessions.begin() as session:
        pid = WHO.one(session).pid
        assert ADD.first(session, tenant="a") is None
    with sessions() as session:
        ADD.first(session, tenant="b")
        with pytest.raises(IntegrityError):
            ADD.first(session, tenant="a")
    with sessions.begin() as session:
        assert WHO.one(session).pid == pid
        assert FIND.one(session, tenant="a").seq == 0
        assert FIND.first(session, tenant="b") is None


def test_one_error_is_all_that_a_server_costs_that_ended_every_connection(
    sessions: Sessions, open_sessions: OpenSessions
) -> None:
    with ExitStack() as stack:
        pids = [WHO.one(stack.enter_context(sessions.begin())).pid for _ in range(3)]
    with open_sessions(None).begin() as other:
        other.execute(text("SELECT pg_terminate_backend(pid, 5000) FROM unnest(:pids) AS pid"), {"pids": pids})
    with pytest.raises(OperationalError) as caught, sessions.begin() as session:
        WHO.one(session)
    assert caught.value.connection_invalidated
    for _ in pids:
        with sessions.begin() as session:
            assert WHO.one(session).pid not in pids
