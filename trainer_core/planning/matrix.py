"""Every combination of engine, quantisation, precision, offload and adapter: trains, or is refused with a code.

`python -m trainer_core.planning.matrix` prints the table of docs/training.md. Each cell asks
`compatibility.find_conflicts` about all combinations that it stands for, and a test compares the page with the table.
"""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

from trainer_core.config import TrainingConfig
from trainer_core.planning.compatibility import find_conflicts

ENGINES: dict[str, Any] = {"one process": "none", "DDP": "none", "ZeRO-1": 1, "ZeRO-2": 2, "ZeRO-3": 3}
"""Columns, with their deepspeed.stage."""

Axes = dict[str, list[Any]]

_LORA, _RSLORA, _DORA = {"variant": "lora"}, {"variant": "rslora"}, {"variant": "dora"}
_LORA_PLUS = {"variant": "lora", "plus_ratio": 16}
_USUAL: Axes = {
    "quantization": ["none", "8bit", "4bit"],
    "precision": ["bf16", "fp32"],
    "lora": [_LORA, _RSLORA, _LORA_PLUS],
    "gradient_checkpointing": [False, True],
    "optimizer": ["adamw"],
    "offload": ["none"],
}
ROWS: dict[str, Axes] = {
    "LoRA, rsLoRA or LoRA+ on an unquantised, 8bit or 4bit base": {},
    "DoRA on an unquantised base": {"lora": [_DORA], "quantization": ["none"]},
    "DoRA on an 8bit or 4bit base": {"lora": [_DORA], "quantization": ["8bit", "4bit"]},
    '`offload: "cpu"`': {"offload": ["cpu"]},
    '`offload: "nvme"`': {"offload": ["nvme"]},
    '`precision: "fp16"`': {"precision": ["fp16"]},
    '`optimizer: "adamw_8bit"`': {"optimizer": ["adamw_8bit"]},
}
"""Rows, with what differs in them from the usual: bf16 or fp32, recomputed or not, AdamW, no offload."""


def render_table() -> str:
    """Markdown."""
    lines = [f"| | {' | '.join(ENGINES)} |", f"|---|{'---|' * len(ENGINES)}"]
    lines += [
        f"| {title} | {' | '.join(_describe(engine, axes) for engine in ENGINES)} |" for title, axes in ROWS.items()
    ]
    return "\n".join(lines) + "\n"


def iter_trainings(engine: str, axes: Axes) -> Iterator[TrainingConfig]:
    """All combinations that a cell stands for."""
    axes = _USUAL | axes
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        deepspeed = {"stage": ENGINES[engine], "offload": settings.pop("offload")}
        yield TrainingConfig.model_validate({**settings, "deepspeed": deepspeed})


def find_code(engine: str, training: TrainingConfig) -> str | None:
    """The first conflict's code; None: it trains."""
    conflicts = find_conflicts(training, num_processes=1 if engine == "one process" else 2)
    return conflicts[0].code if conflicts else None


def _describe(engine: str, axes: Axes) -> str:
    [code] = {find_code(engine, training) for training in iter_trainings(engine, axes)}
    return "trains" if code is None else f"`{code}`"


if __name__ == "__main__":
    sys.stdout.write(render_table())
