"""Settings of commands that work on the database itself: of the servers that are configured, or of a `medtune serve`
that runs in the same home.
"""

from pydantic import SecretStr

from cli.embedded import find_running_postgres
from jobs.settings import Settings, get_settings


def get_operator_settings() -> Settings:
    settings = get_settings()
    if settings.database_url is None and (url := find_running_postgres(settings.home / "postgres")):
        return settings.model_copy(update={"database_url": SecretStr(url)})
    return settings
