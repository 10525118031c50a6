"""A job's training settings, each with its default and what it means."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trainer_core.config import TrainingConfig


@dataclass(frozen=True)
class Setting:
    name: str
    """Such as `lora.r`."""
    value: str
    default: str
    help: str

    @property
    def is_changed(self) -> bool:
        return self.value != self.default


def list_settings(training: dict[str, Any]) -> list[Setting]:
    """In the order of TrainingConfig; what a job of an older version does not have yet is left out."""
    return list(_walk(TrainingConfig(), training, prefix=""))


def _walk(defaults: BaseModel, values: dict[str, Any], prefix: str) -> Iterator[Setting]:
    for name, field in type(defaults).model_fields.items():
        if name not in values:
            continue
        default, value = getattr(defaults, name), values[name]
        if isinstance(default, BaseModel) and isinstance(value, dict):
            yield from _walk(default, value, prefix=f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, _show(value), _show(default), field.description or "")


def _show(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
