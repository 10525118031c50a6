"""Statements that come with almost every request. They are compiled once and run on the driver's own cursor, for a half
of the processor time that SQLAlchemy takes for each (`bench/api.py`); rows and errors are SQLAlchemy's."""

from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Insert, Row, Select, make_url
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import result_tuple
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

_DIALECT = make_url("postgresql+psycopg://").get_dialect()()


class Statement:
    """A SELECT, or another statement that gives no rows. Its parameters have names, and none is a list."""

    def __init__(self, clause: Select[Any] | Insert) -> None:
        compiled = clause.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)
        self.text = str(compiled)
        self.constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        self._json = frozenset(name for name, bind in compiled.binds.items() if isinstance(bind.type, JSONB))
        self._build_row = result_tuple(clause.selected_columns.keys()) if isinstance(clause, Select) else None

    def first(self, session: Session, **parameters: Any) -> Row[Any] | None:
        """The first row of the answer; None without one, or of a statement that gives no rows."""
        connection = session.connection()
        values = self.constants | parameters
        for name in self._json:
            values[name] = Jsonb(values[name])
        try:
            # One for the connection's whole life: making another takes as long as sending a statement.
            cursor = connection.info.get("cursor")
            if cursor is None:
                cursor = connection.info["cursor"] = connection.connection.cursor()
            cursor.execute(self.text, values)
            return self._build_row(row) if self._build_row and (row := cursor.fetchone()) else None
        except BaseException as error:
            # As its own statements do it: what broke leaves the pool, and the error becomes one of SQLAlchemy's.
            connection._handle_dbapi_exception(error, self.text, None, None, None)

    def one(self, session: Session, **parameters: Any) -> Row[Any]:
        """Of a statement that always gives a row."""
        row = self.first(session, **parameters)
        assert row is not None
        return row
