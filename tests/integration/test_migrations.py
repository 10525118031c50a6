"""The migrations: up, down, and the same tables as the models."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from jobs.database import build_engine
from jobs.models import TENANT_TABLES, Base
from jobs.schema import build_alembic_config, migrate
from jobs.settings import Settings
from tests.conftest import Servers, create_database


def list_constraints(connection: Connection) -> list[tuple[str, str]]:
    query = """
        SELECT conrelid::regclass::text || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    """
    return sorted(tuple(row) for row in connection.execute(text(query)))


def test_upgrade_downgrade_upgrade(servers: Servers) -> None:
    settings = Settings(database_url=create_database(servers.postgres_url, "template0"))
    engine = build_engine(settings, role=None)

    migrate(engine)
    with engine.connect() as connection:
        after_first = set(inspect(connection).get_table_names())
    command.downgrade(build_alembic_config(engine), "base")
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    migrate(engine)
    migrate(engine)
    with engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) == after_first
    engine.dispose()


def test_models_and_migrations_agree(servers: Servers) -> None:
    """Columns, types, indexes; and, which Alembic does not compare, constraints."""
    migrated = build_engine(
        Settings(database_url=create_database(servers.postgres_url, servers.template)),
        role=None,
    )
    modelled = build_engine(
        Settings(database_url=create_database(servers.postgres_url, "template0")),
        role=None,
    )
    Base.metadata.create_all(modelled)

    with migrated.connect() as a, modelled.connect() as b:
        context = MigrationContext.configure(a, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        assert list_constraints(a) == list_constraints(b)
    migrated.dispose()
    modelled.dispose()


def test_every_tenant_table_is_under_row_level_security(servers: Servers) -> None:
    engine = build_engine(
        Settings(database_url=create_database(servers.postgres_url, servers.template)),
        role=None,
    )
    with engine.connect() as connection:
        secured = connection.scalars(text("SELECT relname FROM pg_class WHERE relrowsecurity ORDER BY 1")).all()
    engine.dispose()

    assert secured == sorted(TENANT_TABLES)
