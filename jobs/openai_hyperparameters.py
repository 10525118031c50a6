"""Hyperparameters as OpenAI names them, and the training settings that they mean here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer_core.config import TrainingConfig

Auto = Literal["auto"]

DEFAULT_LEARNING_RATE: float = TrainingConfig.model_fields["learning_rate"].default
"""What `learning_rate_multiplier` multiplies."""


class HyperparametersBody(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    n_epochs: Auto | Annotated[int, Field(ge=1)] | None = None
    """`auto`: 3."""
    batch_size: Auto | Annotated[int, Field(ge=1)] | None = None
    """`auto`: 16."""
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] | None = None
    """Times 2e-4; `auto`: 1."""


class Rule(BaseModel):
    """What becomes of one hyperparameter."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    field: str
    """Of `training` in `POST /jobs`, such as `learning_rate`."""
    times: Annotated[int | float, Field(gt=0)] = 1
    """The field's value is the hyperparameter's times this."""
    auto: int | float | None = None
    """The field's value for `auto`; null: the field's default."""


RULES: Mapping[str, Rule] = {
    "n_epochs": Rule(field="epochs"),
    "batch_size": Rule(field="global_batch_size"),
    "learning_rate_multiplier": Rule(field="learning_rate", times=DEFAULT_LEARNING_RATE),
    "seed": Rule(field="seed"),
}
"""By hyperparameter."""


def translate(given: HyperparametersBody, seed: int | None, rules: Mapping[str, Rule] = RULES) -> dict[str, Any]:
    """Settings of `training`; what is not given, or `auto` without a value of its own, is left to its default."""
    found: dict[str, Any] = {}
    for name, value in {**given.model_dump(exclude_none=True), "seed": seed}.items():
        rule = rules[name]
        wanted = rule.auto if value == "auto" else value
        if wanted is not None:
            found[rule.field] = wanted if value == "auto" or rule.times == 1 else wanted * rule.times
    return found
