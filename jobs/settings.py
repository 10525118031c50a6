"""Settings: everything an operator can set, from environment variables `MEDTUNE_*` or files in /run/secrets."""

import functools
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FieldSerializationInfo, SecretStr, field_serializer
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.secret_files import load_or_create_secret

_SECRETS_DIR = Path("/run/secrets")


class Settings(BaseSettings):
    """Each field is documented in docs/configuration.md."""

    model_config = SettingsConfigDict(env_prefix="MEDTUNE_", env_ignore_empty=True, use_attribute_docstrings=True)

    home: Path = Path(".medtune")
    """Folder of everything that medtune keeps on this machine."""
    database_url: SecretStr | None = None
    """PostgreSQL, as `postgresql://user:password@host:port/name`. Without it, `serve` runs one in the home."""
    redis_url: SecretStr | None = None
    """Redis, as `redis://:password@host:port/0`. Without it, `serve` runs one in the home."""
    store_url: str | None = None
    """Where datasets and adapters are kept: a folder, or any fsspec URL such as `s3://bucket/prefix`.
    Without it, `HOME/store`."""
    models_dir: Path | None = None
    """Folder whose subfolders are base models. Without it, `HOME/models`."""
    models_file: Path | None = None
    """TOML file that registers further base models."""
    bootstrap_key: SecretStr | None = Field(default=None, min_length=16)
    """An admin API key with this value exists after start."""
    secret_key: SecretStr | None = Field(default=None, min_length=32)
    """Key of the API keys' hashes and of the dashboard's sessions; the same for every API process.
    Without it, one is made in `HOME/secret_key`."""
    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port that the API listens on."""
    public_url: str | None = None
    """The URL under which people reach the service."""
    log_level: str = "INFO"
    """Level of the service's own logs."""
    max_upload_bytes: Annotated[int, Field(gt=0)] = 5 * 2**30
    """Largest dataset that may be uploaded."""
    session_hours: Annotated[float, Field(gt=0)] = 12
    """How long a sign-in to the dashboard lasts."""
    worker_gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of this worker. Without it, as many as the machine's NVIDIA driver shows."""
    trainer_command: Annotated[list[str], Field(min_length=1)] = [sys.executable, "-m", "trainer_core"]
    """What runs the trainer, as a JSON list: for example with `nice`, or in a sandbox, in front."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 10
    """A worker renews its lease on a job this often."""
    lease_seconds: Annotated[float, Field(gt=0)] = 180
    """A job whose lease is older than this is taken from its worker."""
    flush_seconds: Annotated[float, Field(gt=0)] = 1
    """A worker sends a running job's logs and metrics to the database this often."""
    stop_grace_seconds: Annotated[float, Field(gt=0)] = 30
    """From SIGTERM to SIGKILL for a trainer that must stop."""
    reconcile_seconds: Annotated[float, Field(gt=0)] = 5
    """The reconciler looks for waiting work and lost leases this often."""
    max_attempts: Annotated[int, Field(gt=0)] = 3
    """A job whose workers were lost this often fails."""

    def model_post_init(self, _context: Any) -> None:
        self.home = self.home.expanduser().absolute()
        self.models_dir = (self.models_dir or self.home / "models").expanduser().absolute()

    @field_serializer("database_url", "redis_url", "bootstrap_key", "secret_key")
    def _reveal_if_asked(self, value: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        """Secrets leave this object only for whoever says so: `model_dump(context={"reveal_secrets": True})`."""
        if value is None:
            return None
        return value.get_secret_value() if (info.context or {}).get("reveal_secrets") else str(value)

    @property
    def store_location(self) -> str:
        return self.store_url or str(self.home / "store")

    @property
    def runs_dir(self) -> Path:
        """Folder of the attempts' run folders on this worker."""
        return self.home / "runs"

    def load_secret_key(self) -> bytes:
        """The configured key, or the home's own."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value().encode()
        return load_or_create_secret(self.home / "secret_key", lambda: secrets.token_hex(32)).encode()


@functools.cache
def get_settings() -> Settings:
    """Secrets are files in MEDTUNE_SECRETS_DIR, else in /run/secrets where containers have them."""
    folder = os.environ.get("MEDTUNE_SECRETS_DIR") or (_SECRETS_DIR if _SECRETS_DIR.is_dir() else None)
    return Settings(_secrets_dir=folder)
