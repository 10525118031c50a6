"""Settings: everything an operator can set, from environment variables `MEDTUNE_*` or files in /run/secrets."""

import functools
import importlib.util
import os
import re
import secrets
import sys
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    FieldSerializationInfo,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.secret_files import load_or_create_secret
from jobs.status import OverlapPolicy, PhiPolicy

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
    data_roots: list[str] = []
    """Folders, and `s3://bucket/prefix`, that references of datasets may point into, as a JSON list."""
    models_dir: Path | None = None
    """Folder whose subfolders are base models. Without it, `HOME/models`."""
    models_file: Path | None = None
    """TOML file that registers further base models."""
    bootstrap_key: SecretStr | None = Field(default=None, min_length=16)
    """An admin API key with this value exists after start."""
    secret_key: SecretStr | None = Field(default=None, min_length=32)
    """Key of the API keys' hashes and of the dashboard's sessions; the same for every API process.
    Without it, one is made in `HOME/secret_key`."""
    signing_key_file: Path | None = None
    """Private key that workers sign adapters with: PEM, elliptic (P-256), readable by its owner only; the same on every
    worker. Without it, one is made in `HOME/signing-key.pem`."""
    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port that the API listens on."""
    public_url: str | None = None
    """The URL under which people reach the service."""
    allowed_hosts: list[str] = []
    """Further names under which the API answers, as a JSON list."""
    log_level: str = "INFO"
    """Level of the service's own logs."""
    max_upload_bytes: Annotated[int, Field(gt=0)] = 5 * 2**30
    """Largest dataset that may be uploaded."""
    phi_policy: PhiPolicy = PhiPolicy.REPORT
    """What becomes of a dataset with identifiers of patients, where its upload does not say."""
    vault_key_file: Path | None = None
    """Key of the vault, which says what the placeholders of replaced identifiers stand for; readable by its owner only,
    the same on every worker that checks datasets. Without it, one is made in `HOME/vault-key.txt`."""
    phi_patterns_file: Path | None = None
    """JSON file with the site's own patterns of identifiers."""
    safety_probes_file: Path | None = None
    """YAML file with the site's own safety probes, which are asked beside the package's."""
    safety_rules_file: Path | None = None
    """YAML file with the site's own safety rules, which extend the package's."""
    safety_guard_url: str | None = None
    """OpenAI-compatible endpoint of a guard model, which judges answers to safety probes beside the rules."""
    safety_guard_model: str | None = None
    """The guard model's name there."""
    safety_guard_key_file: Path | None = None
    """File with that endpoint's API key, which the trainer reads."""
    safety_guard_ignored: list[str] = ["S6"]
    """Categories of the guard that make no answer unsafe, as a JSON list."""
    safety_guard_concurrency: int = 8
    """Requests to the guard at once, from each run."""
    safety_guard_request_seconds: float = 30
    """The guard has so long for one verdict."""
    safety_guard_round_seconds: float = 300
    """The guard has so long for all verdicts of a round."""
    overlap_policy: OverlapPolicy = OverlapPolicy.REPORT
    """What becomes of a dataset with duplicates, or with questions of benchmarks or probes, where its upload does not
    say."""
    benchmarks_dir: Path | None = None
    """Folder of benchmark files whose questions datasets must not hold."""
    phi_ner_model: Path | None = None
    """Folder of a token classifier that looks for identifiers beside the rules."""
    reads_per_second: Annotated[float, Field(ge=0)] = 100
    """A key may read so often, and ten times as often for a moment; 0: as often as it likes."""
    writes_per_second: Annotated[float, Field(ge=0)] = 20
    """The same of requests that change something."""
    failures_per_minute: Annotated[float, Field(ge=0)] = 600
    """So many wrong keys are looked up for an address; 0: any number."""
    tenant_max_queued: Annotated[int, Field(ge=0)] | None = None
    """As many jobs of a tenant may wait."""
    tenant_max_storage_bytes: Annotated[int, Field(ge=0)] | None = None
    """So much the datasets of a tenant may take."""
    allow_merged_export: bool = False
    """Adapters may leave this service merged into their base: `POST /jobs/{id}/export`. Otherwise no weights of a base
    ever do."""
    session_hours: Annotated[float, Field(gt=0)] = 12
    """How long a sign-in to the dashboard lasts."""
    max_streams: Annotated[int, Field(ge=0)] = 500
    """Jobs that clients follow at once, at each API process."""
    max_streams_per_key: Annotated[int, Field(ge=0)] = 50
    """As many of them may be one API key's."""
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = []
    """Networks that webhooks may reach although they are not public, as a JSON list."""
    webhook_allow_http: bool = False
    """Webhooks may be sent unencrypted."""
    webhook_backoff_seconds: Annotated[float, Field(gt=0)] = 5
    """A webhook's message that failed is sent again after so long; each further failure triples it, up to 8 hours."""
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

    @field_validator("store_url")
    @classmethod
    def _need_a_driver(cls, value: str | None) -> str | None:
        if (value or "").startswith("s3://") and importlib.util.find_spec("s3fs") is None:
            raise ValueError("S3 needs the extra s3: pip install 'medtune[s3]'")
        return value

    @field_validator("data_roots")
    @classmethod
    def _check_roots(cls, roots: list[str], info: ValidationInfo) -> list[str]:
        """What medtune itself keeps is no client's to name: it is every tenant's."""
        home = info.data.get("home", Path()).expanduser()
        kept = [_resolve(place) for place in (str(home), info.data.get("store_url") or str(home))]
        roots = [root.rstrip("/") for root in roots]
        for root in roots:
            if not re.fullmatch(r"(s3:/)?(/[^/\0]+)+", root) or {".", ".."} & set(root.split("/")):
                raise ValueError(f"{root!r} is neither an absolute folder nor s3://bucket/prefix")
            ours = _resolve(root)
            if any(one.startswith(ours) or ours.startswith(one) for one in kept):
                raise ValueError(f"{root!r} holds medtune's home or store, or is in it")
            cls._need_a_driver(root)
        return roots

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


def _resolve(place: str) -> str:
    """A folder without links, or an address; with a slash at its end."""
    return f"{(place if '://' in place else os.path.realpath(place)).rstrip('/')}/"


@functools.cache
def get_settings() -> Settings:
    """Secrets are files in MEDTUNE_SECRETS_DIR, else in /run/secrets where containers have them."""
    folder = os.environ.get("MEDTUNE_SECRETS_DIR") or (_SECRETS_DIR if _SECRETS_DIR.is_dir() else None)
    return Settings(_secrets_dir=folder)
