"""JobSpec: what a client asks for. Its training part is `trainer_core.config.TrainingConfig`."""

from typing import Annotated

from pydantic import Field, model_validator

from trainer_core.config import ConfigModel, SafetyConfig, TrainingConfig

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


DatasetId = Annotated[str, Field(pattern=r"^ds_[0-9A-HJKMNP-TV-Z]{26}$")]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]


class DatasetReference(ConfigModel):
    """An uploaded dataset, or a file that a worker fetches."""

    id: DatasetId | None = None
    """A dataset's id, from `POST /datasets`."""
    uri: Uri | None = None
    """`file:///folder/file` or `s3://bucket/key`, inside the operator's `MEDTUNE_DATA_ROOTS`. It becomes a dataset, and
    the job then says its id."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "DatasetReference":
        if (self.id is None) == (self.uri is None):
            raise ValueError("give either id or uri")
        return self


class ValidationSpec(ConfigModel):
    """Held-out rows: a dataset of their own, or a share of the training rows."""

    id: DatasetId | None = None
    """A dataset's id."""
    uri: Uri | None = None
    """A file of rows, as `dataset.uri`."""
    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the training rows to hold out."""

    @model_validator(mode="after")
    def _one_of_all(self) -> "ValidationSpec":
        if [self.id, self.uri, self.fraction].count(None) != 2:
            raise ValueError("give one of id, uri and fraction")
        return self


class InitialAdapter(ConfigModel):
    """What the adapter's weights begin as; the optimizer, the schedule and the steps begin anew."""

    job: Annotated[str, Field(pattern=r"^job_[0-9A-HJKMNP-TV-Z]{26}$")] | None = None
    """A succeeded job of yours, or one whose adapter is released. With a checkpoint: the job that it is of."""
    checkpoint: Annotated[str, Field(pattern=r"^ckpt_[0-9A-HJKMNP-TV-Z]{26}$")] | None = None
    """A stored checkpoint of a job of yours that has ended, from `GET /jobs/{id}/checkpoints`."""

    @model_validator(mode="after")
    def _at_least_one(self) -> "InitialAdapter":
        if self.job is None and self.checkpoint is None:
            raise ValueError("give job or checkpoint")
        return self


class ResourcesSpec(ConfigModel):
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs, one training process each; null is 1 where a worker has one, else 0 (the CPU)."""
    nodes: Annotated[int, Field(ge=1, le=1)] = 1
    """Hosts; only 1 for now."""
    cpus: Annotated[int, Field(ge=1, le=256)] | None = None
    """Without GPUs: the number of training processes, each with its share of the cores. Null is 1."""
    memory_gb: None = None
    """Reserved; only null for now."""
    time_limit: Annotated[int, Field(ge=1, le=31 * 86400)] | None = None
    """Seconds that workers may spend on the job, over all attempts; null is no limit."""
    partition: None = None
    """Reserved; only null for now."""


class JobSpec(ConfigModel):
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A name for people."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """A base model's id, from `GET /models`."""
    dataset: DatasetReference
    """The rows to train on."""
    validation: ValidationSpec | None = None
    """The rows to measure on."""
    init_from: InitialAdapter | None = None
    """An adapter to go on from, of the same base and the same LoRA shape; null: a fresh one."""
    training: TrainingConfig = TrainingConfig()
    """How to train."""
    resources: ResourcesSpec = ResourcesSpec()
    """What to train on."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher starts earlier."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}
    """Labels of your own, for finding jobs again."""
    safety: SafetyConfig | None = SafetyConfig()
    """Safety probes during and after training; null: nothing is asked."""
    webhook_url: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """Told when the job ends, is held or paused: the URL of one of `GET /webhooks`."""

    @model_validator(mode="after")
    def _refuse_nul(self) -> "JobSpec":
        """PostgreSQL cannot store the character NUL."""
        if "\\u0000" in self.model_dump_json():
            raise ValueError("the character NUL (U+0000) is not allowed")
        return self
