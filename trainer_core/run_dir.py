"""RunDir and RunSpec: what worker and trainer agree on, on disk. Torch-free.

RUN_DIR/
  spec.json          in: RunSpec
  plan.json          out: Plan, as the trainer follows and changes it
  events.jsonl       out: one event a line (trainer_core.reporting)
  train.log          out: stdout and stderr of every process of the run
  init/              in: the adapter that a run goes on from, if any
  prepared/          tokenised rows
  checkpoints/       step-N folders
  adapter/           the adapter, only when training went to its end
  safety_failures.jsonl, safety_summary.jsonl  out: what the safety monitor found, and every round, also the passed
  safety.json        out: the table of the last round, for the model card
  verification.json  out: what `verify` found in a fresh process
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from trainer_core.config import AcceptedFinding, ConfigModel, SafetyConfig, TrainingConfig
from trainer_core.errors import ConfigurationError
from trainer_core.planning.plan import Plan
from trainer_core.safety.guard_config import GuardConfig

FAILURES_FILE, SUMMARY_FILE = "safety_failures.jsonl", "safety_summary.jsonl"


class ModelSource(ConfigModel):
    id: str
    """Name in the registry."""
    source: str
    """A folder, or a hub id."""
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None


class ValidationSource(ConfigModel):
    path: str | None = None
    """Rows held out by the client, or null."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training rows to hold out, or null."""


class InitialSource(ConfigModel):
    path: str
    """A folder with an adapter of the same base and shape."""
    job: str | None = None
    """The job that made it."""
    checkpoint: str | None = None
    """The checkpoint that it was in; null: it is the job's adapter."""


class RunSpec(ConfigModel):
    """All that the trainer knows about its job."""

    version: Literal[1] = 1
    job_id: str
    attempt: int = 1
    model: ModelSource
    train_path: str
    validation: ValidationSource = ValidationSource()
    training: TrainingConfig = TrainingConfig()
    init_from: InitialSource | None = None
    """What the adapter's weights begin as; null: a fresh adapter."""
    safety: SafetyConfig | None = SafetyConfig()
    """Null: nothing is asked."""
    safety_probes_path: str | None = None
    """The site's own probes, beside the package's."""
    safety_rules_path: str | None = None
    """The site's own rules, which extend the package's."""
    safety_guard: GuardConfig | None = None
    """A guard model that judges beside the rules."""
    accepted_findings: tuple[AcceptedFinding, ...] = ()
    """What reviewers accepted."""
    num_processes: int = Field(default=1, ge=1)
    """Ranks: one per GPU, or processes on the CPU."""
    gpus: int = Field(default=0, ge=0)
    """GPUs to use; 0 trains on the CPU."""

    def digest_rows(self) -> str:
        """Of all that decides how rows are tokenised and packed."""
        training = {"max_seq_len", "packing", "truncation", "train_on", "chat_template", "seed"}
        fields: dict[str, Any] = {"model": True, "train_path": True, "validation": True, "training": training}
        return hashlib.sha256(self.model_dump_json(include=fields).encode()).hexdigest()

    def digest_plan(self) -> str:
        """Of all that decides the plan."""
        others = {"job_id", "attempt", "accepted_findings", "init_from"} | {
            name for name in type(self).model_fields if "safety" in name
        }
        return hashlib.sha256(self.model_dump_json(exclude=others).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class RunDir:
    """Paths of one attempt's folder."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def prepared(self) -> Path:
        return self.path / "prepared"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def verification(self) -> Path:
        return self.path / "verification.json"

    def write_spec(self, spec: RunSpec) -> None:
        """Create the folder with its spec, readable by its owner only."""
        self.path.mkdir(parents=True, mode=0o700)
        write_file(self.spec, spec.model_dump_json(indent=1))

    def load_spec(self) -> RunSpec:
        """Raises ConfigurationError."""
        try:
            return RunSpec.model_validate_json(self.spec.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise ConfigurationError(
                "spec_invalid",
                f"spec.json is not what it should be: {field + ': ' if field else ''}{first['msg']}",
                remedy="Correct it, or write a new one with `python -m trainer_core spec` into a folder of its own.",
                field=field,
            ) from None

    def write_plan(self, plan: Plan) -> None:
        """Whole or not at all: other ranks read it."""
        write_file(self.plan, plan.model_dump_json(indent=1))

    def load_plan(self) -> Plan:
        return Plan.model_validate_json(self.plan.read_bytes())

    def find_plan(self) -> Plan | None:
        """None when there is none, or one that a crash left half written."""
        try:
            return self.load_plan()
        except (OSError, ValueError):
            return None


def write_file(path: Path, text: str) -> None:
    """Whole or not at all, also after a power cut; readable by its owner only."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
