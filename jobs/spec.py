"""JobSpec: what a client asks for. Its training part is `trainer_core.config.TrainingConfig`."""

from typing import Annotated

from pydantic import Field, model_validator

from trainer_core.config import ConfigModel, TrainingConfig

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class DatasetReference(ConfigModel):
    id: Annotated[str, Field(pattern=r"^ds_[0-9A-HJKMNP-TV-Z]{26}$")]
    """A dataset's id, from `POST /datasets`."""


class ValidationSpec(ConfigModel):
    """Held-out rows: a dataset of their own, or a share of the training rows."""

    id: Annotated[str, Field(pattern=r"^ds_[0-9A-HJKMNP-TV-Z]{26}$")] | None = None
    """A dataset's id."""
    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the training rows to hold out."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "ValidationSpec":
        if (self.id is None) == (self.fraction is None):
            raise ValueError("give either id or fraction")
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
    init_from: None = None
    """Reserved; only null for now."""
    training: TrainingConfig = TrainingConfig()
    """How to train."""
    resources: ResourcesSpec = ResourcesSpec()
    """What to train on."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher starts earlier."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}
    """Labels of your own, for finding jobs again."""
    safety: None = None
    """Reserved; only null for now."""
    webhook_url: None = None
    """Reserved; only null for now."""

    @model_validator(mode="after")
    def _refuse_nul(self) -> "JobSpec":
        """PostgreSQL cannot store the character NUL."""
        if "\\u0000" in self.model_dump_json():
            raise ValueError("the character NUL (U+0000) is not allowed")
        return self
