"""The fields of the new-job form. Label and place are chosen here; the rest is told from the request's own schema."""

import functools
import json
from dataclasses import dataclass
from typing import Any

from jobs.spec import JobSpec


@dataclass(frozen=True)
class FormField:
    name: str
    """Its path in the request, which is also the `param` of an error about it."""
    label: str
    help: str
    default: str
    choices: list[tuple[str, str]]
    """JSON value and label of each; empty for a field to type into."""
    kind: str
    """`number` or `text`: what the form sends for what was typed."""


_GROUPS = {
    "Length": {
        "training.epochs": "Epochs",
        "training.max_steps": "Max steps",
        "training.global_batch_size": "Global batch size",
        "training.max_seq_len": "Max sequence length",
    },
    "Learning": {
        "training.learning_rate": "Learning rate",
        "training.lora.r": "LoRA rank r",
        "training.lora.alpha": "LoRA alpha",
        "validation.fraction": "Validation fraction",
    },
    "Memory and scale": {
        "training.quantization": "Quantization",
        "training.deepspeed.stage": "DeepSpeed ZeRO stage",
    },
}


@functools.cache
def build_form() -> dict[str, list[FormField]]:
    """Fields by group."""
    schema = JobSpec.model_json_schema()
    return {group: [_build_field(schema, *item) for item in fields.items()] for group, fields in _GROUPS.items()}


def _build_field(schema: dict[str, Any], name: str, label: str) -> FormField:
    found = schema
    for part in name.split("."):
        found = _resolve(schema, found)["properties"][part]
    variants = found.get("anyOf", [found])
    values = [value for variant in variants for value in _list_values(variant)]
    is_number = any(variant.get("type") in ("number", "integer") for variant in variants)
    return FormField(
        name=name,
        label=label,
        help=found.get("description", "").replace("`", ""),
        default=_show_default(found.get("default"), is_choice=bool(values)),
        choices=[(json.dumps(value), str(value)) for value in values],
        kind="number" if is_number else "text",
    )


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The object behind a reference, also one that may be null."""
    for variant in (node, *node.get("anyOf", [])):
        if reference := variant.get("$ref"):
            definition: dict[str, Any] = schema["$defs"][reference.rsplit("/", 1)[-1]]
            return definition
    return node


def _list_values(variant: dict[str, Any]) -> list[Any]:
    return [variant["const"]] if "const" in variant else list(variant.get("enum", []))


def _show_default(default: Any, *, is_choice: bool) -> str:
    if is_choice:
        return json.dumps(default)
    return "" if default is None else f"{default:.6g}" if isinstance(default, float) else str(default)
