"""A trainer for tests: speaks the same files as `python -m trainer_core`, needs no torch, and misbehaves on demand.

What it does stands in the first row's instruction, as JSON with the fields of `Script`.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainer_core.reporting import CheckpointEvent, ErrorEvent, MetricsEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir


@dataclasses.dataclass
class Script:
    steps: int = 3
    step_seconds: float = 0.0
    log: str = ""
    """Printed before the first step."""
    log_hex: str = ""
    """Bytes printed before the first step."""
    exit_code: int = 0
    """Ends like this after half of the steps."""
    kill_signal: int = 0
    """Ends by this signal after half of the steps."""
    error_code: str = ""
    """Ends with an error event after half of the steps."""
    ignore_term: bool = False
    spawn_setsid: bool = False
    """Starts a child in a session of its own that ignores SIGTERM; its pid goes to the file `child.pid`."""
    verify_fails: bool = False


def main() -> int:
    command, run_dir = sys.argv[1], RunDir(Path(sys.argv[2]))
    reporter = Reporter(run_dir.events)
    row = json.loads(Path(run_dir.load_spec().train_path).read_text(encoding="utf-8").splitlines()[0])
    script = Script(**json.loads(row["instruction"])) if row["instruction"].startswith("{") else Script()
    return train(run_dir, reporter, script) if command == "train" else verify(run_dir, reporter, script)


def train(run_dir: RunDir, reporter: Reporter, script: Script) -> int:
    reporter.report(PhaseEvent(phase="starting"))
    if script.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.spawn_setsid:
        spawn_stubborn_child(run_dir)
    sys.stdout.write(script.log)
    sys.stdout.buffer.write(bytes.fromhex(script.log_hex))
    for step in range(1, script.steps + 1):
        time.sleep(script.step_seconds)  # The work that a real trainer would do.
        sys.stdout.write(f"step {step}/{script.steps}\n")
        sys.stdout.flush()
        values = {"loss": 3.0 / step, "learning_rate": 1e-4}
        progress = {"step": step, "max_steps": script.steps, "epoch": step / script.steps, "tokens": 100 * step}
        reporter.report(MetricsEvent(**progress, eta_seconds=float(script.steps - step), values=values))
        if step == max(script.steps // 2, 1):
            misbehave(reporter, script)
    reporter.report(CheckpointEvent(step=script.steps, path=f"checkpoints/step-{script.steps}", bytes=10))
    run_dir.adapter.mkdir()
    (run_dir.adapter / "adapter_config.json").write_text("{}")
    (run_dir.adapter / "adapter_model.safetensors").write_bytes(b"not read by the worker")
    return 0


def misbehave(reporter: Reporter, script: Script) -> None:
    if script.error_code:
        reporter.report(ErrorEvent(code=script.error_code, message="it went wrong", remedy="do it right"))
        sys.exit(1)
    if script.kill_signal:
        os.kill(os.getpid(), script.kill_signal)
    if script.exit_code:
        sys.stdout.write("Traceback: the last words\n")
        sys.exit(script.exit_code)


def spawn_stubborn_child(run_dir: RunDir) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    (run_dir.path / "child.pid").write_text(str(child.pid))


def verify(run_dir: RunDir, reporter: Reporter, script: Script) -> int:
    reporter.report(PhaseEvent(phase="verifying"))
    ok = not script.verify_fails
    run_dir.verification.write_text(json.dumps({"ok": ok, "checks": [{"name": "fake", "ok": ok}]}))
    if not ok:
        reporter.report(ErrorEvent(code="artifact_invalid", message="the adapter changes nothing"))
        return 1
    reporter.report(PhaseEvent(phase="finished"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
