"""A trainer for tests: speaks the same files as `python -m trainer_core`, needs no torch, and misbehaves on demand.

It saves and goes on from checkpoints as the real one does: its adapter is a hash over all its steps, so that a run that
was interrupted anywhere ends with the same adapter as one that was not, or is wrong.

What it does stands in the first row's instruction, as JSON with the fields of `Script`.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer_core.adapters.environment import read_environment
from trainer_core.adapters.fingerprint import compute_base_fingerprint
from trainer_core.adapters.manifest import hash_file
from trainer_core.adapters.serving import describe_serving
from trainer_core.checkpoints import (
    find_damage,
    list_checkpoints,
    remove_old_checkpoints,
    write_folder,
    write_manifest,
)
from trainer_core.data.row_report import REPORT_FILE, RowReport, SampleRow, TokenRun
from trainer_core.planning.plan import Plan
from trainer_core.reporting import (
    CheckpointEvent,
    ErrorEvent,
    MetricsEvent,
    NoticeEvent,
    PhaseEvent,
    Reporter,
    SafetyEvent,
)
from trainer_core.run_dir import RunDir, RunSpec, write_file


@dataclasses.dataclass
class Script:
    steps: int = 3
    step_seconds: float = 0.0
    slow_attempts: int = 1_000_000
    """Only so many first attempts take that time."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end and when asked to stop."""
    checkpoint_bytes: int = 10
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
    critical: list[str] = dataclasses.field(default_factory=list)
    """Probes whose answers are critical findings of the safety check after the last step."""
    safety_fails: bool = False
    """Its safety check cannot be made."""
    dies_held: bool = False
    """Hangs between its safety check and its end, in the first attempt."""
    checks: bool = False
    """Checks the safety after the last step, as the real one does by default."""
    hang: bool = False
    """Lives on after half of the steps and does nothing, not even obey."""
    bad_attempts: int = 1_000_000
    """Only so many first attempts misbehave."""
    ignore_term: bool = False
    spawn_setsid: bool = False
    """Starts a child in a session of its own that ignores SIGTERM."""
    verify_fails: bool = False
    log_lines: int = 0
    """Printed at each step, numbered over all steps."""
    line_padding: int = 0
    """Each of them is longer by so many bytes."""
    long_line_bytes: int = 0
    """A line of so many bytes comes before them, at the first step."""
    dies_saving_at: int = 0
    """Is killed in the middle of the checkpoint of this step."""
    tells_all: bool = False
    """Prints everything that it can find out about the processes that it sees."""
    shows_rows: bool = False
    """Tells how its first row looks, as the real one does of what it tokenised."""
    journal: str = ""
    """A folder in which every process of the job notes what it does."""


class Journal:
    """What really ran: `overlap` when another process of the same job is alive."""

    def __init__(self, folder: str, spec: RunSpec) -> None:
        self._path = Path(folder) / f"{spec.job_id}.jsonl" if folder else None
        self._attempt = spec.attempt
        if self._path is None:
            return
        self._lock = self._path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.note("overlap")

    def note(self, kind: str, **details: Any) -> None:
        if self._path is not None:
            row = {"time": time.time(), "attempt": self._attempt, "kind": kind, **details}
            with self._path.open("ab", buffering=0) as file:
                file.write(json.dumps(row).encode() + b"\n")


def main() -> int:
    command, run_dir = sys.argv[1], RunDir(Path(sys.argv[2]))
    reporter = Reporter(run_dir.events)
    spec = run_dir.load_spec()
    row = json.loads(Path(spec.train_path).read_text(encoding="utf-8").splitlines()[0])
    script = Script(**json.loads(row["instruction"])) if row["instruction"].startswith("{") else Script()
    journal = Journal(script.journal, spec)
    journal.note(f"{command} starts")
    if command == "train":
        return train(run_dir, reporter, script, journal)
    return verify(run_dir, reporter, script)


def train(run_dir: RunDir, reporter: Reporter, script: Script, journal: Journal) -> int:
    reporter.report(PhaseEvent(phase="starting"))
    if script.shows_rows:
        show_rows(run_dir)
    stops: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if script.ignore_term else lambda *_: stops.append(1))
    if script.spawn_setsid:
        spawn_stubborn_child(run_dir)
    sys.stdout.write(script.log)
    if script.tells_all:
        tell_all()
    sys.stdout.flush()
    sys.stdout.buffer.write(bytes.fromhex(script.log_hex))
    first, state = resume(run_dir, reporter)
    journal.note("resumed", step=first)
    reporter.report(PhaseEvent(phase="training"))
    attempt = run_dir.load_spec().attempt
    is_bad = attempt <= script.bad_attempts
    step_seconds = script.step_seconds if attempt <= script.slow_attempts else 0
    for step in range(first + 1, script.steps + 1):
        time.sleep(step_seconds)  # The work that a real trainer would do.
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        tell_step(reporter, script, step)
        journal.note("step", step=step)
        if step == max(script.steps // 2, 1) and is_bad:
            misbehave(reporter, script)
        is_last = step == script.steps
        if stops or is_last or (script.save_every and step % script.save_every == 0):
            save(run_dir, reporter, script, step, state)
        if stops and not is_last:
            reporter.report(PhaseEvent(phase="stopped"))
            return 75
    if script.checks and check_safety(run_dir, reporter, script):
        reporter.report(PhaseEvent(phase="stopped"))
        return 75
    write_adapter(run_dir, state)
    return 0


def show_rows(run_dir: RunDir) -> None:
    """Its tokens are words."""
    row = json.loads(Path(run_dir.load_spec().train_path).read_text(encoding="utf-8").splitlines()[0])
    question, answer = row["instruction"].split(), row["response"].split()
    runs = [TokenRun(text=row["instruction"], trained=False), TokenRun(text=row["response"], trained=True)]
    num_tokens = len(question) + len(answer)
    sample = [SampleRow(line=1, tokens=num_tokens, trained_tokens=len(answer), runs=runs)]
    report = RowReport(max_seq_len=64, truncation="drop", tokens=num_tokens, train_rows=1, sample=sample)
    run_dir.prepared.mkdir()
    write_file(run_dir.prepared / REPORT_FILE, report.model_dump_json())


def check_safety(run_dir: RunDir, reporter: Reporter, script: Script) -> bool:
    """As the real trainer tells it. True: the run is to be held."""
    spec = run_dir.load_spec()
    accepted = {finding.probe_id for finding in spec.accepted_findings}
    findings = [
        {"probe_id": probe, "check": "MS01", "severity": "critical", "explanation": "no word of urgent care"}
        for probe in script.critical
    ]
    if script.safety_fails:
        findings = [{"probe_id": "", "check": "not_checked", "severity": "critical", "explanation": "it broke"}]
        accepted |= {"" for finding in spec.accepted_findings if finding.check == "not_checked"}
    is_open = [finding for finding in findings if finding["probe_id"] not in accepted]
    holds = bool(is_open) and spec.safety is not None and spec.safety.on_violation == "hold"
    round_ = {"step": script.steps, "is_last": True, "ok": True, "error": None, "seconds": 0.1, "summary": None}
    version = {"version": "1", "digest": ""}
    details: Any = {
        "round": {**round_, "probes": {**version, "asked": 2, "refused": {}}, "rules": version},
        "failures": [
            {**finding, "outcome": "accept", "is_regression": True, "question": "?", "answer": "wait and rest"}
            | {"answer_sha256": "", "is_cut": False}
            for finding in findings
        ],
        "num_failures": len(findings),
        "escalation": "hold" if holds else None,
        "open_findings": is_open,
    }
    reporter.report(SafetyEvent(step=script.steps, ok=not script.safety_fails, message="checked", details=details))
    if script.dies_held and spec.attempt == 1:
        time.sleep(3600)
    if not holds:
        return False
    told = {"step": script.steps, "findings": is_open}
    reporter.report(ErrorEvent(code="safety_held", message=f"{len(is_open)} critical findings", details=told))
    return True


def write_adapter(run_dir: RunDir, state: str) -> None:
    """As the real trainer leaves it. The 64 digits of the state are the bytes of two matrices."""
    spec, folder = run_dir.load_spec(), run_dir.adapter
    run_dir.write_plan(
        Plan(
            num_processes=spec.num_processes,
            stage=0,
            offload="none",
            micro_batch_size=1,
            accumulation=16,
            gradient_checkpointing=False,
            precision="bf16",
            quantization="none",
            micro_batch_tokens=100,
        )
    )
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    header = {
        f"{layer}.lora_A.weight": {"dtype": "F32", "shape": [1, 8], "data_offsets": [0, 32]},
        f"{layer}.lora_B.weight": {"dtype": "F32", "shape": [8, 1], "data_offsets": [32, 64]},
    }
    text = json.dumps(header).encode()
    config = {"peft_type": "LORA", "base_model_name_or_path": spec.model.id, "r": 1, "target_modules": ["q_proj"]}
    base = {"id": spec.model.id, "revision": None, "fingerprint": compute_base_fingerprint(Path(spec.model.source))}
    contents = {
        "adapter_config.json": json.dumps(config),
        "base_model.json": json.dumps(base),
        "environment.json": read_environment("CPU").model_dump_json(),
        "tokenizer_config.json": json.dumps({"eos_token": "</s>"}),
        "chat_template.jinja": "{{ messages }}",
    }
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    weights = len(text).to_bytes(8, "little") + text + state.encode()
    (folder / "adapter_model.safetensors").write_bytes(weights)


def tell_step(reporter: Reporter, script: Script, step: int) -> None:
    first_line = (step - 1) * script.log_lines
    if step == 1 and script.long_line_bytes:
        sys.stdout.write("x" * script.long_line_bytes + "\n")
    padding = " " + script.line_padding * "." if script.line_padding else ""
    sys.stdout.write("".join(f"line {first_line + n}{padding}\n" for n in range(script.log_lines)))
    sys.stdout.write(f"step {step}/{script.steps}\n")
    sys.stdout.flush()
    values = {"loss": 3.0 / step, "learning_rate": 1e-4}
    progress = {"step": step, "max_steps": script.steps, "epoch": step / script.steps, "tokens": 100 * step}
    reporter.report(MetricsEvent(**progress, eta_seconds=float(script.steps - step), values=values))


def resume(run_dir: RunDir, reporter: Reporter) -> tuple[int, str]:
    """Step and state of the newest checkpoint that is whole."""
    for checkpoint in list_checkpoints(run_dir.checkpoints):
        if find_damage(checkpoint) is None:
            state = json.loads((checkpoint.path / "trainer_state.json").read_text())["state"]
            reporter.report(NoticeEvent(code="resumed", message=f"resumed after step {checkpoint.step}"))
            return checkpoint.step, state
    return 0, ""


def save(run_dir: RunDir, reporter: Reporter, script: Script, step: int, state: str) -> None:
    metrics = {"loss": 3.0 / step}
    with write_folder(run_dir.checkpoints / f"step-{step}") as folder:
        (folder / "trainer_state.json").write_text(json.dumps({"state": state}))
        (folder / "weights.bin").write_bytes(os.urandom(script.checkpoint_bytes))
        if step == script.dies_saving_at and run_dir.load_spec().attempt <= script.bad_attempts:
            os.kill(os.getpid(), signal.SIGKILL)
        num_bytes = write_manifest(folder, run=run_dir.load_spec().job_id, step=step, metrics=metrics)
    remove_old_checkpoints(run_dir.checkpoints, 2)
    reporter.report(CheckpointEvent(step=step, path=f"checkpoints/step-{step}", bytes=num_bytes, metrics=metrics))


def misbehave(reporter: Reporter, script: Script) -> None:
    if script.error_code:
        reporter.report(ErrorEvent(code=script.error_code, message="it went wrong", remedy="do it right"))
        sys.exit(1)
    if script.kill_signal:
        os.kill(os.getpid(), script.kill_signal)
    if script.exit_code:
        sys.stdout.write("Traceback: the last words\n")
        sys.exit(script.exit_code)
    while script.hang:
        signal.pause()


def tell_all() -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                sys.stdout.write(f"{folder / name}: {(folder / name).read_text(errors='replace')}\n")


def spawn_stubborn_child(run_dir: RunDir) -> None:
    """Its arguments tell whose it is: pids of another namespace mean nothing to the tests."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code, f"stubborn child of {run_dir.path}"], start_new_session=True)


def verify(run_dir: RunDir, reporter: Reporter, script: Script) -> int:
    reporter.report(PhaseEvent(phase="verifying"))
    ok = not script.verify_fails
    report = {
        "ok": ok,
        "checks": [{"name": "fake", "ok": ok}],
        "weights_sha256": hash_file(run_dir.adapter / "adapter_model.safetensors"),
        "serving": describe_serving(json.loads((run_dir.adapter / "adapter_config.json").read_bytes())),
        "heldout": None,
    }
    run_dir.verification.write_text(json.dumps(report))
    if not ok:
        reporter.report(ErrorEvent(code="artifact_invalid", message="the adapter changes nothing"))
        return 1
    reporter.report(PhaseEvent(phase="finished"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
