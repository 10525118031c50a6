"""What a run says is stored without secrets."""

from pathlib import Path

from sqlalchemy import make_url, text

from cli.serve import Service
from jobs.database import build_engine
from jobs.models import Base
from tests.factories import read_all, submit_script, wait_for_status
from tests.plain_client import Client

TOKEN = "hf_" + "Ab1" * 12


def test_what_a_trainer_prints_is_stored_without_secrets(service: Service, client: Client, tmp_path: Path) -> None:
    """One of a well-known kind, and the passwords of the service itself."""
    settings = service.settings
    assert settings.database_url is not None
    assert settings.redis_url is not None
    urls = [settings.database_url.get_secret_value(), settings.redis_url.get_secret_value()]
    passwords = [str(make_url(url).password) for url in urls]
    log = f"token {TOKEN}\n{urls[0]}\nthe password is {passwords[1]}\nthe end\n"

    job_id = submit_script(client, tmp_path, log=log)
    wait_for_status(client, job_id, "succeeded", seconds=120)

    stored = "".join(chunk["text"] for chunk in read_all(client, f"/jobs/{job_id}/logs"))
    assert "token [secret]\n" in stored
    assert "the password is [secret]\nthe end" in stored
    engine = build_engine(settings, role=None, pool_size=1)
    with engine.connect() as connection:
        for secret in (TOKEN, *passwords):
            for table in Base.metadata.sorted_tables:
                found = text(f"SELECT count(*) FROM {table.name} AS entry WHERE position(:secret IN entry::text) > 0")
                assert (table.name, connection.scalar(found, {"secret": secret})) == (table.name, 0)
    engine.dispose()
