"""RunDir and RunSpec: what worker and trainer agree on, on disk. Torch-free.

RUN_DIR/
  spec.json          in: RunSpec
  plan.json          out: Plan, as the trainer follows and changes it
  events.jsonl       out: one event a line (trainer_core.reporting)
  train.log          out: stdout and stderr of every process of the run
  prepared/          tokenised rows
  checkpoints/       step-N folders
  adapter/           the adapter, only when training went to its end
  verification.json  out: what `verify` found in a fresh process
"""

import dataclasses
from pathlib import Path

from pydantic import Field

from trainer_core.config import ConfigModel, TrainingConfig
from trainer_core.planning.plan import Plan


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


class RunSpec(ConfigModel):
    """All that the trainer knows about its job."""

    version: int = 1
    job_id: str
    attempt: int = 1
    model: ModelSource
    train_path: str
    validation: ValidationSource = ValidationSource()
    training: TrainingConfig = TrainingConfig()
    num_processes: int = Field(default=1, ge=1)
    """Ranks: one per GPU, or processes on the CPU."""
    gpus: int = Field(default=0, ge=0)
    """GPUs to use; 0 trains on the CPU."""


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
        self.spec.touch(mode=0o600)
        self.spec.write_text(spec.model_dump_json(indent=1), encoding="utf-8")

    def load_spec(self) -> RunSpec:
        return RunSpec.model_validate_json(self.spec.read_bytes())

    def write_plan(self, plan: Plan) -> None:
        """Whole or not at all: other ranks read it."""
        partial = self.plan.with_suffix(".partial")
        partial.write_text(plan.model_dump_json(indent=1), encoding="utf-8")
        partial.rename(self.plan)

    def load_plan(self) -> Plan:
        return Plan.model_validate_json(self.plan.read_bytes())
