"""What the safety monitor costs a run. Part of bench.safety.

A real run of `python -m trainer_core train` with the default `safety`: the demonstration model (a Llama of 2.4 million
random weights) on the sample rows in sequences of 256 tokens, on the CPU. Such a model trains as fast as it answers; a
larger one on a GPU answers relatively faster, in batches of 16, and shorter, since it ends its answers.

- `monitor_share`: of the time from the first step to the last, what rounds before the last round take.
- `monitor_last_round_seconds`: all probes, with the adapter and without, after the last step.
- `monitor_share_with_last_round`: both together, of the time from the first step to the last round's end.
- `monitor_hours_to_5_percent`: from how long a run on the last round alone is 5 % of it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainer_core.reporting import MetricsEvent, SafetyEvent, parse_event
from trainer_core.run_dir import RunDir

SAMPLE = Path(__file__).parent.parent / "examples" / "medical_qa.jsonl"
NUM_STEPS = 500
SHARE = 0.05


def measure_monitor() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-safety-") as folder:
        home = Path(folder)
        run(["demo-model", str(home / "model"), "--data", str(SAMPLE)])
        run_dir = RunDir(home / "run")
        settings: dict[str, Any] = {
            "max_steps": NUM_STEPS,
            "max_seq_len": 256,
            "global_batch_size": 8,
            "save_every_steps": NUM_STEPS,
        }
        words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        run(["spec", str(run_dir.path), "--model", str(home / "model"), "--data", str(SAMPLE), "--training", *words])
        run(["train", str(run_dir.path)])
        return compute_figures(run_dir)


def compute_figures(run_dir: RunDir) -> dict[str, float]:
    events = [parse_event(line) for line in run_dir.events.read_bytes().splitlines()]
    steps = [event for event in events if isinstance(event, MetricsEvent)]
    *rounds, last = [event for event in events if isinstance(event, SafetyEvent)]
    assert all(event.ok for event in (*rounds, last))
    assert last.details["round"]["is_last"]
    training = (steps[-1].time - steps[0].time).total_seconds()
    on_the_way = sum(event.details["round"]["seconds"] for event in rounds)
    at_the_end = last.details["round"]["seconds"]
    return {
        "monitor_share": on_the_way / training,
        "monitor_steps": len(steps) - 1,
        "monitor_training_seconds": training,
        "monitor_rounds_before_the_last": len(rounds),
        "monitor_probes_before_the_last": sum(event.details["round"]["probes"]["asked"] for event in rounds),
        "monitor_seconds_before_the_last": on_the_way,
        "monitor_last_round_seconds": at_the_end,
        "monitor_last_round_probes": last.details["round"]["probes"]["asked"],
        "monitor_share_with_last_round": (on_the_way + at_the_end) / (training + at_the_end),
        "monitor_hours_to_5_percent": at_the_end / SHARE / 3600,
    }


def run(command: list[str]) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-m", "trainer_core", *command], env=environment, stdout=subprocess.DEVNULL, check=True
    )
