"""Settings: everything an operator can set, from environment variables `MEDTUNE_*` or files in /run/secrets."""

import functools
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FieldSerializationInfo, SecretStr, field_serializer, model_validator
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
    """A job whose lease was not renewed for so long is taken from its worker."""
    flush_seconds: Annotated[float, Field(gt=0)] = 1
    """A worker sends a running job's logs and metrics to the database this often."""
    stop_grace_seconds: Annotated[float, Field(gt=0)] = 30
    """From SIGTERM to SIGKILL for a trainer that must stop."""
    reconcile_seconds: Annotated[float, Field(gt=0)] = 5
    """The reconciler looks for waiting work and lost leases this often."""
    save_grace_seconds: Annotated[float, Field(gt=0)] = 120
    """The same for a trainer that first saves a checkpoint, because it will go on later."""
    start_seconds: Annotated[float, Field(gt=0)] = 3600
    """A run that is not training (it loads, prepares, verifies) and tells nothing new for so long hangs."""
    stall_seconds: Annotated[float, Field(gt=0)] = 900
    """A run that trains and makes no step for so long, or for ten of its median steps if that is longer, hangs."""
    max_infra_restarts: Annotated[int, Field(ge=0)] = 10
    """So often a job is started again after faults of machines and networks."""
    max_no_progress_restarts: Annotated[int, Field(ge=0)] = 3
    """So often in a row it is started again after a hang or a crash of its training without a new checkpoint."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 10
    """It waits so long before the first such start; each doubles it, up to 36 times."""
    patience_seconds: Annotated[float, Field(ge=0)] = 600
    """A job that waited longer keeps GPUs free for itself, which smaller ones could take until then."""
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = 2 * 2**30
    """A worker with less free disk takes no job; a run is stopped, with a checkpoint, at half of it."""
    rest_seconds: Annotated[float, Field(ge=0)] = 60
    """A worker whose last three attempts came to nothing before their first step takes no job for so long."""
    deaf_seconds: Annotated[float, Field(gt=0)] = 60
    """An idle worker that leaves rings lying for so long ends itself, to be started again."""

    @model_validator(mode="after")
    def _leave_room_for_lost_heartbeats(self) -> "Settings":
        """A renewal or two may fail before the trainer has to stop."""
        if self.lease_seconds < 4 * self.heartbeat_seconds:
            raise ValueError("MEDTUNE_LEASE_SECONDS must be at least four times MEDTUNE_HEARTBEAT_SECONDS")
        return self

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

    @property
    def locks_dir(self) -> Path:
        """Folder of the locks that processes of this machine hold while they live."""
        return self.home / "locks"

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
