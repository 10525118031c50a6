"""The table that says what OpenAI's models and hyperparameters become here: TOML, to be edited."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.openai_hyperparameters import RULES, Rule

_HEAD = """\
# What `medtune import-openai DIR --table THIS-FILE` makes of OpenAI's jobs.

# OpenAI's models, as the jobs name them, and the base models that take their place: ids from `medtune models`.
# A job that went on from a fine-tuned model names it (ft:...): it begins from the base that you give that name here.
[models]
"""

_SETTINGS = """
# Settings of `training` in POST /jobs that every job gets; what a hyperparameter below says goes before them.
[training]
# quantization = "4bit"
# lora = { r = 32, alpha = 64 }

# Each hyperparameter becomes a field of `training`: its value times `times`. `auto` is the value that stands for
# "auto"; without it, the field keeps its default.
"""


class TableError(Exception):
    """The table cannot be used; the message says where and why."""


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: dict[str, str] = {}
    training: dict[str, Any] = {}
    hyperparameters: dict[str, Rule] = {}

    def get_rules(self) -> Mapping[str, Rule]:
        return {**RULES, **self.hyperparameters}

    def find_model(self, name: str) -> str | None:
        """None: there is no line for it, or an empty one."""
        return self.models.get(name) or None


def load_table(path: Path | None) -> Table:
    """Raises TableError, OSError."""
    if path is None:
        return Table()
    try:
        table = Table.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TableError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise TableError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if unknown := sorted(set(table.hyperparameters) - set(RULES)):
        raise TableError(f"{path}: hyperparameters.{unknown[0]}: there are only {', '.join(RULES)}")
    return table


def write_table(path: Path, models: Mapping[str, int]) -> None:
    """With a line for each model, by how many jobs name it, and the rules as they are. Raises FileExistsError."""
    example = '# "gpt-4o-mini-2024-07-18" = "tiny-llama"\n'
    lines = "".join(f'{json.dumps(name)} = ""  # {count} jobs\n' for name, count in sorted(models.items()))
    rules = "\n".join(_write_rule(name, rule) for name, rule in RULES.items())
    with path.open("x", encoding="utf-8") as file:
        file.write(_HEAD + (lines or example) + _SETTINGS + rules)


def _write_rule(name: str, rule: Rule) -> str:
    lines = [f"[hyperparameters.{name}]", f"field = {json.dumps(rule.field)}", f"times = {rule.times}", "# auto = …"]
    return "\n".join(lines) + "\n"
