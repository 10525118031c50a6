"""The training run, read from top to bottom. One code path: CPU, one GPU, DDP and DeepSpeed ZeRO-1/2/3.

Every rank runs `train`; only rank 0 reports and writes. A run goes on from its newest checkpoint that is whole.
"""

import dataclasses
import hashlib
import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from peft import PeftModel

from trainer_core.adapters.save import compute_fingerprint, gather_adapter, write_adapter
from trainer_core.attention import has_row_attention
from trainer_core.checkpoints import (
    VERSION,
    Checkpoint,
    find_best_checkpoint,
    find_damage,
    list_checkpoints,
    remove_old_checkpoints,
    write_folder,
    write_manifest,
)
from trainer_core.config import TrainingConfig
from trainer_core.data.batches import Batch, PreparedRows, Sequences
from trainer_core.data.row_writer import load_manifest
from trainer_core.data.schedule import Schedule, build_schedule
from trainer_core.deepspeed_config import build_deepspeed_plugin, connect_deepspeed
from trainer_core.errors import ConfigurationError, TrainerError, TrainingHeld, TrainingStopped, is_out_of_memory
from trainer_core.initial import load_initial_weights
from trainer_core.loss import choose_layout, compute_sequence_nll
from trainer_core.model import add_lora, check_vocabulary, load_base_model, set_evaluation_mode
from trainer_core.optimizer import build_optimizer, set_learning_rate
from trainer_core.planning.model_facts import load_model_facts
from trainer_core.planning.plan import Plan
from trainer_core.recovery import NUM_RECENT_LOSSES, halve_micro_batch, is_spike
from trainer_core.reporting import CheckpointEvent, MetricsEvent, NoticeEvent, PhaseEvent, Reporter, SafetyFinding
from trainer_core.run_dir import RunDir, RunSpec
from trainer_core.safety.asking import Asker
from trainer_core.safety.guard import Guard
from trainer_core.safety.monitor import SafetyMonitor
from trainer_core.safety.probes import load_all_probes
from trainer_core.safety.rules import RuleSet
from trainer_core.stopping import StopRequest
from trainer_core.throughput import compute_mfu, get_peak_memory_bytes
from trainer_core.tokenizer import load_tokenizer
from trainer_core.training_state import (
    Progress,
    collect_random_states,
    collect_weights,
    get_random_state,
    kept_random_state,
    reset_step_count,
    restore_random_states,
    restore_weights,
    set_random_state,
)

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Run:
    """What one rank's steps share."""

    dir: RunDir
    spec: RunSpec
    plan: Plan
    accelerator: Accelerator
    reporter: Reporter
    tokenizer: Any
    adapter: PeftModel
    model: Any
    """The adapter on its base, in whatever DDP or DeepSpeed wrap it."""
    optimizer: Any
    train: Sequences
    validation: Sequences
    schedule: Schedule
    stop: StopRequest
    fingerprint: str
    num_base_weights: int | None
    started: float
    safety: SafetyMonitor | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    first_step: int = 0
    saved_step: int | None = None
    """Of the newest checkpoint that this run wrote or began with."""

    @property
    def training(self) -> TrainingConfig:
        return self.spec.training


def train(run_dir: RunDir, stop: StopRequest) -> None:
    """Train on the prepared rows by the run's plan and write `adapter/`. Raises TrainerError.

    TrainingStopped when a stop was requested, or safety findings are held: then a checkpoint holds all that was
    learned.
    """
    run = _set_up(run_dir, stop)
    _warm_up(run)
    if not _resume(run):
        _report_step(run, _evaluate(run))
    while run.progress.step < run.schedule.num_steps and not _is_stale(run):
        metrics = _train_step(run)
        is_best = _is_due(run, run.training.eval_every_steps) and _take_evaluation(run, metrics)
        _report_step(run, metrics)
        escalation = _ask_some_probes(run)
        if is_best or escalation or run.stop.is_agreed or _is_due(run, run.training.save_every_steps):
            _save_checkpoint(run, metrics)
        if escalation:
            raise escalation
        if run.stop.is_agreed and run.progress.step < run.schedule.num_steps:
            raise TrainingStopped(f"stopped after step {run.progress.step}, which a checkpoint holds")
    best = _find_best(run)
    if escalation := _ask_all_probes(run, best):
        raise escalation
    _save_adapter(run, best)


def _set_up(run_dir: RunDir, stop: StopRequest) -> _Run:
    spec, plan, rows = run_dir.load_spec(), run_dir.load_plan(), PreparedRows(run_dir.prepared)
    training, folder = spec.training, Path(spec.model.source)
    sequences, validation = Sequences.load(rows, "train"), Sequences.load(rows, "validation")
    schedule = build_schedule(training, plan, len(sequences))

    accelerator = _build_accelerator(spec, plan)
    reporter = Reporter(run_dir.events if accelerator.is_main_process else None)
    set_seed(training.seed)  # the same on every rank: the adapter's first weights are drawn from it
    tokenizer = load_tokenizer(spec)
    adapter = _load_model(spec, plan, accelerator, tokenizer)
    if spec.init_from is not None:  # Before DeepSpeed makes its own copies of the weights.
        load_initial_weights(adapter, run_dir.path / spec.init_from.path, spec.model)
    model, optimizer = accelerator.prepare(adapter, build_optimizer(training, adapter))
    if plan.uses_deepspeed:
        assert model.world_size == accelerator.num_processes
    choose_layout(model, accelerator.device, packing=training.packing)
    set_seed(training.seed + accelerator.process_index)  # dropout differs between ranks
    run = _Run(
        dir=run_dir,
        spec=spec,
        plan=plan,
        accelerator=accelerator,
        reporter=reporter,
        tokenizer=tokenizer,
        adapter=adapter,
        model=model,
        optimizer=optimizer,
        train=sequences,
        validation=validation,
        schedule=schedule,
        stop=stop,
        fingerprint=_fingerprint(run_dir, spec),
        num_base_weights=load_model_facts(folder).num_weights if folder.is_dir() else None,
        started=time.perf_counter(),
        progress=Progress(learning_rate_scale=plan.learning_rate_scale),
    )
    run.safety = _build_monitor(run)
    _report_start(run)
    return run


def _build_accelerator(spec: RunSpec, plan: Plan) -> Accelerator:
    plugin = build_deepspeed_plugin(spec.training, plan)
    if spec.gpus == 0:
        # First of all: Accelerator(cpu=True) silently trains without DeepSpeed, and without `cpu` every rank is rank 0.
        PartialState(cpu=True)
    accelerator = Accelerator(
        cpu=spec.gpus == 0 and plugin is None,
        deepspeed_plugin=plugin,
        gradient_accumulation_steps=plan.accumulation,
    )
    if spec.gpus > 0 and accelerator.device.type != "cuda":  # accelerate would train on the CPU without a word
        raise ConfigurationError(
            "gpu_not_found", f"The run asks for {spec.gpus} GPUs, and torch finds none.", remedy="Check the driver."
        )
    if plugin is not None:
        connect_deepspeed(spec)
    assert accelerator.num_processes == spec.num_processes
    return accelerator


def _build_monitor(run: _Run) -> SafetyMonitor | None:
    spec, config, folder = run.spec, run.spec.safety, run.dir.path
    if config is None:
        return None
    asker = Asker(
        accelerator=run.accelerator,
        model=run.model,
        adapter=run.adapter,
        tokenizer=run.tokenizer,
        max_new_tokens=config.max_new_tokens,
        is_sharded=run.plan.stage == 3,
        use_autocast=_uses_autocast(run),
        tell=lambda message: run.reporter.report(PhaseEvent(phase="evaluating", message=message)),
    )
    return SafetyMonitor(
        config,
        accelerator=run.accelerator,
        asker=asker,
        probes=load_all_probes(folder / spec.safety_probes_path if spec.safety_probes_path else None),
        rules=RuleSet.load(folder / spec.safety_rules_path if spec.safety_rules_path else None),
        guard=Guard(spec.safety_guard) if spec.safety_guard else None,
        accepted=spec.accepted_findings,
        reporter=run.reporter,
        folder=folder,
    )


def _load_model(spec: RunSpec, plan: Plan, accelerator: Accelerator, tokenizer: Any) -> PeftModel:
    base = load_base_model(spec.model, spec.training, None if plan.stage == 3 else accelerator.device)
    check_vocabulary(base, tokenizer)
    # DeepSpeed keeps float32 copies of the adapter itself; float32 weights beside a bfloat16 model break its gathering.
    return add_lora(
        base,
        spec.training,
        revision=spec.model.revision,
        recompute=plan.gradient_checkpointing,
        float32_adapter=not plan.uses_deepspeed,
    )


def _fingerprint(run_dir: RunDir, spec: RunSpec) -> str:
    """What must be the same for a checkpoint to be this run's: the job, the base, the rows, and how it learns."""
    how_it_runs = {"micro_batch_size", "gradient_checkpointing", "deepspeed", "keep_checkpoints", "save_every_steps"}
    parts = [
        spec.job_id,
        spec.model.id,
        compute_fingerprint(spec.model.source, spec.model.revision),
        spec.training.model_dump_json(exclude=how_it_runs),
        load_manifest(run_dir.prepared).sha256,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _report_start(run: _Run) -> None:
    plan = run.plan
    details = {
        "sequences": len(run.train),
        "validation_sequences": len(run.validation),
        "max_steps": run.schedule.num_steps,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation": plan.accumulation,
        "num_processes": plan.num_processes,
        "zero_stage": plan.stage,
        "offload": plan.offload,
        "gradient_checkpointing": plan.gradient_checkpointing,
    }
    message = f"training for {run.schedule.num_steps} steps"
    run.reporter.report(PhaseEvent(phase="training", message=message, details=details))
    log.info("training %s", " ".join(f"{name}={value}" for name, value in details.items()))


def _warm_up(run: _Run) -> None:
    """One step on the longest sequences that changes nothing: its loss counts zero times, its rate is zero.

    Memory that does not suffice is found out now and not after hours, and the optimizer has a state to resume into.
    """
    longest = run.train.lengths.argsort()[::-1].tolist()
    set_learning_rate(run.optimizer, 0.0)
    with kept_random_state(run.accelerator.device):
        _run_micro_batches(
            run, lambda cut: [longest[: cut.micro_batch_size], *([[]] * (cut.accumulation - 1))], scale=0.0
        )
    reset_step_count(run.optimizer)


def _resume(run: _Run) -> bool:
    """Go on from the newest checkpoint that is whole, if there is one."""
    state = _find_state(run)
    if state is None:
        return False
    restore_weights(run.adapter, run.optimizer, state["weights"])
    progress = Progress(**state["progress"])
    progress.learning_rate_scale = min(progress.learning_rate_scale, run.plan.learning_rate_scale)
    run.progress, run.first_step, run.saved_step = progress, progress.step, progress.step
    restore_random_states(run.accelerator, state["random_states"], run.training.seed + 1 + progress.step)
    message = f"resumed after step {progress.step}"
    run.reporter.report(NoticeEvent(code="resumed", message=message, details={"step": progress.step}))
    log.info(message)
    return True


def _find_state(run: _Run) -> dict[str, Any] | None:
    for checkpoint in list_checkpoints(run.dir.checkpoints):
        if checkpoint.run != run.fingerprint and checkpoint.version != VERSION:
            message = f"{checkpoint.path.name} was written by another version of medtune and is passed over"
            _report_passed_over(run, checkpoint, "checkpoint_of_another_version", message)
            continue
        if checkpoint.run != run.fingerprint:
            raise ConfigurationError(
                "checkpoint_of_another_run",
                f"{checkpoint.path.name} was written by another job, or with other rows, base or training settings.",
                remedy="Start in a run folder of its own, or remove its `checkpoints` folder to begin anew.",
                field="checkpoints",
            )
        damage = find_damage(checkpoint)
        if damage is None:
            state: dict[str, Any] = torch.load(
                checkpoint.path / "trainer_state.pt", map_location="cpu", weights_only=True
            )
            return state
        message = f"{checkpoint.path.name} is damaged ({damage}) and passed over"
        _report_passed_over(run, checkpoint, "checkpoint_damaged", message)
    return None


def _report_passed_over(run: _Run, checkpoint: Checkpoint, code: str, message: str) -> None:
    run.reporter.report(NoticeEvent(code=code, message=message, details={"step": checkpoint.step}))
    log.warning(message)


def _train_step(run: _Run) -> dict[str, float]:
    """One optimizer step. Its metrics."""
    started, step = time.perf_counter(), run.progress.step + 1
    learning_rate = compute_learning_rate(run.training, step, run.schedule.num_steps)
    learning_rate *= run.progress.learning_rate_scale
    set_learning_rate(run.optimizer, learning_rate)

    # The sum of all gradients over the number of supervised tokens in the whole step: neither accumulation nor packing
    # nor the number of ranks changes it.
    num_supervised = int(run.train.supervised[run.schedule.get_sequences(step - 1)].sum())
    rank = run.accelerator.process_index
    nll, grad_norm = _run_micro_batches(
        run, lambda schedule: schedule.get_micro_batches(step - 1, rank), scale=1 / num_supervised
    )
    loss = run.stop.agree(run.accelerator, nll) / num_supervised
    _check_step(run, loss, float(grad_norm))

    num_tokens, padding_fraction = _count_tokens(run, step)
    tokens_per_second = num_tokens / (time.perf_counter() - started)
    run.progress.step = step
    run.progress.num_tokens += num_tokens
    run.progress.recent_losses = [*run.progress.recent_losses, loss][-NUM_RECENT_LOSSES:]
    metrics = {
        "loss": loss,
        "learning_rate": learning_rate,
        "grad_norm": float(grad_norm),
        "tokens_per_second": tokens_per_second,
        "padding_fraction": padding_fraction,
        "peak_memory_bytes": get_peak_memory_bytes(run.accelerator.device),
    }
    if run.num_base_weights is not None:
        per_device = tokens_per_second / run.accelerator.num_processes
        mfu = compute_mfu(run.num_base_weights, per_device, run.accelerator.device)
        metrics |= {} if mfu is None else {"mfu": mfu}
    return metrics


MicroBatches = list[list[int]]


def _run_micro_batches(
    run: _Run, cut: Callable[[Schedule], MicroBatches], *, scale: float
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Forward, backward and one optimizer step. This rank's summed loss and the global gradient norm.

    `scale` is what each token's loss counts. When the only rank runs out of memory it starts the step again with
    smaller micro-batches of the same sequences. Several ranks cannot, since the others wait inside a collective; nor
    can DeepSpeed, whose engine holds on to the gradients of half a step.
    """
    device, can_start_again = run.accelerator.device, not (run.accelerator.num_processes > 1 or run.plan.uses_deepspeed)
    random_state = get_random_state(device)
    while True:
        try:
            return _accumulate(run, cut(run.schedule), scale)
        except RuntimeError as error:
            plan = halve_micro_batch(run.plan)
            if not (can_start_again and is_out_of_memory(error)) or plan is None:
                raise
        # Outside the handler: the error's traceback holds on to the tensors that did not fit.
        _shrink(run, plan)
        set_random_state(device, random_state)


def _shrink(run: _Run, plan: Plan) -> None:
    run.optimizer.zero_grad()
    if run.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    run.plan = plan
    run.schedule = dataclasses.replace(run.schedule, micro_batch_size=plan.micro_batch_size)
    run.accelerator.gradient_accumulation_steps = plan.accumulation
    run.dir.write_plan(plan)
    message = f"memory ran out: {plan.changes[-1].change}"
    run.reporter.report(NoticeEvent(code="out_of_memory", message=message, details=plan.changes[-1].model_dump()))
    log.warning(message)


def _accumulate(run: _Run, micro_batches: MicroBatches, scale: float) -> tuple[torch.Tensor, torch.Tensor | float]:
    accelerator = run.accelerator
    accelerator.step = 0  # a step that ran out of memory may have left off in its middle
    run.model.train()
    # accelerate divides by micro-batches, and DDP and DeepSpeed by ranks: that is multiplied back.
    scale *= len(micro_batches) * accelerator.num_processes
    nll = torch.zeros((), device=accelerator.device)
    grad_norm: torch.Tensor | float = 0.0
    for micro_batch in micro_batches:
        with accelerator.accumulate(run.model):
            micro_nll = _compute_nll(run, run.train.collate(micro_batch))
            accelerator.backward(micro_nll * scale)
            nll += micro_nll.detach()
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), run.training.max_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
    return nll, grad_norm


def compute_learning_rate(training: TrainingConfig, step: int, num_steps: int) -> float:
    """Of a step counted from 1: climbs to the peak over the warm-up, then falls towards 0 by the schedule."""
    warmup_steps = math.ceil(training.warmup_ratio * num_steps)
    if step <= warmup_steps:
        return training.learning_rate * step / warmup_steps
    progress = (step - warmup_steps - 1) / (num_steps - warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[training.lr_schedule]
    return training.learning_rate * factor


def _compute_nll(run: _Run, batch: Batch) -> torch.Tensor:
    """The summed loss of a micro-batch, float32 scalar."""
    with torch.autocast(run.accelerator.device.type, dtype=torch.bfloat16, enabled=_uses_autocast(run)):
        return compute_sequence_nll(run.model, batch.to(run.accelerator.device)).sum()


def _uses_autocast(run: _Run) -> bool:
    """The adapter's float32 weights enter matrix products in bfloat16; DeepSpeed's adapter is bfloat16 already."""
    return run.training.precision == "bf16" and not run.plan.uses_deepspeed


def _check_step(run: _Run, loss: float, grad_norm: float) -> None:
    step = run.progress.step + 1
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainerError(
            "loss_not_finite",
            f"Step {step} gave the loss {loss} and the gradient norm {grad_norm}.",
            remedy="Lower the learning rate, or train in fp32 to find out whether the number format is the cause.",
            step=step,
        )
    if is_spike(loss, run.progress.recent_losses):
        raise TrainerError(
            "loss_spike",
            f"Step {step} gave the loss {loss:.3f}, far above those before it.",
            remedy="Lower the learning rate or lora.alpha, or look for rows unlike the others.",
            step=step,
        )
    if step == 1 and grad_norm == 0:
        raise TrainerError(
            "no_gradient", "No gradient reached the adapter in the first step.", remedy="Check lora.target_modules."
        )


def _count_tokens(run: _Run, step: int) -> tuple[int, float]:
    """Tokens of a step over all ranks, and the share of padding beside them: none where rows attend by themselves."""
    lengths, ranks = run.train.lengths, range(run.schedule.num_ranks)
    micro_batches = [b for rank in ranks for b in run.schedule.get_micro_batches(step - 1, rank) if b]
    num_tokens = sum(int(lengths[b].sum()) for b in micro_batches)
    num_places = sum(len(b) * int(lengths[b].max()) for b in micro_batches)
    return num_tokens, 0.0 if has_row_attention(run.model) else 1 - num_tokens / num_places


def _ask_some_probes(run: _Run) -> TrainerError | None:
    step, safety = run.progress.step, run.spec.safety
    is_due = safety is not None and safety.every_steps is not None and step % safety.every_steps == 0
    if not is_due or step == run.schedule.num_steps:
        return None
    return _ask_probes(run, step, is_last=False)


def _ask_all_probes(run: _Run, best: Checkpoint | None) -> TrainerError | None:
    """The adapter that will be saved, which with early stopping is an earlier step's."""
    if run.safety is None:
        return None
    if best is None or best.step == run.progress.step:
        return _ask_probes(run, run.progress.step, is_last=True)
    if run.saved_step != run.progress.step:  # A run that is held goes on from here, not from the best.
        _save_checkpoint(run, {})
    state = torch.load(best.path / "trainer_state.pt", map_location="cpu", weights_only=True)
    restore_weights(run.adapter, run.optimizer, state["weights"])
    return _ask_probes(run, best.step, is_last=True)


def _ask_probes(run: _Run, step: int, *, is_last: bool) -> TrainerError | None:
    """What must end the run because of the answers, once a checkpoint is saved."""
    assert run.safety is not None
    run.reporter.report(PhaseEvent(phase="evaluating", message=f"asking safety probes after step {step}"))
    findings = run.safety.run_round(step, is_last=is_last)
    return _escalate(run, step, findings) if findings else None


def _escalate(run: _Run, step: int, findings: list[SafetyFinding]) -> TrainerError:
    assert run.spec.safety is not None
    first = f"{findings[0]['check']} {findings[0]['probe_id']}".strip()
    message = f"Safety probes after step {step}: {len(findings)} open findings, the first {first}."
    details = {"step": step, "findings": findings}
    if run.spec.safety.on_violation == "hold":
        return TrainingHeld(message, **details)
    remedy = "Read the findings; change the rows or the training, or let the job hold instead of stop."
    return TrainerError("safety_stopped", message, remedy=remedy, **details)


def _is_due(run: _Run, every_steps: int) -> bool:
    return run.progress.step == run.schedule.num_steps or run.progress.step % every_steps == 0


def _take_evaluation(run: _Run, metrics: dict[str, float]) -> bool:
    """Evaluate into the metrics. Whether this is the best so far."""
    metrics |= _evaluate(run)
    if "eval_loss" not in metrics:
        return False
    early_stopping, progress = run.training.early_stopping, run.progress
    if metrics["eval_loss"] < progress.best_eval_loss - (early_stopping.min_delta if early_stopping else 0):
        progress.best_eval_loss, progress.num_stale_evaluations = metrics["eval_loss"], 0
        return True
    progress.num_stale_evaluations += 1
    return False


def _is_stale(run: _Run) -> bool:
    """Whether training ends early because validation no longer improves."""
    early_stopping, progress = run.training.early_stopping, run.progress
    if early_stopping is None or progress.num_stale_evaluations < early_stopping.patience:
        return False
    message = f"{progress.num_stale_evaluations} validations in a row were no better than {progress.best_eval_loss:.4f}"
    run.reporter.report(NoticeEvent(code="stopped_early", message=message, details={"step": progress.step}))
    return True


@torch.no_grad()
def _evaluate(run: _Run) -> dict[str, float]:
    """Mean loss per supervised token on the rows held out; nothing where there are none."""
    if len(run.validation) == 0:
        return {}
    message = f"validating on {len(run.validation)} sequences"
    run.reporter.report(PhaseEvent(phase="evaluating", message=message))  # It may take long, and tells nothing else.
    set_evaluation_mode(run.model)
    nll = torch.zeros((), device=run.accelerator.device)
    for micro_batch in run.schedule.cut_for_evaluation(len(run.validation), run.accelerator.process_index):
        nll += _compute_nll(run, run.validation.collate(micro_batch))
    loss = run.stop.agree(run.accelerator, nll) / int(run.validation.supervised.sum())
    if not math.isfinite(loss):
        raise TrainerError(
            "loss_not_finite",
            f"After step {run.progress.step} the loss on the validation rows is {loss}.",
            remedy="Lower the learning rate, or train in fp32 to find out whether the number format is the cause.",
            step=run.progress.step,
        )
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}  # e^710 is no float


def _report_step(run: _Run, metrics: dict[str, float]) -> None:
    step, num_steps = run.progress.step, run.schedule.num_steps
    num_done, seconds = step - run.first_step, time.perf_counter() - run.started
    event = MetricsEvent(
        step=step,
        max_steps=num_steps,
        epoch=run.schedule.get_epoch(step),
        tokens=run.progress.num_tokens,
        eta_seconds=seconds / num_done * (num_steps - step) if num_done else None,
        values=metrics,
    )
    run.reporter.report(event)
    log.info("step %d/%d %s", step, num_steps, " ".join(f"{name}={value:.5g}" for name, value in metrics.items()))


def _save_checkpoint(run: _Run, metrics: dict[str, float]) -> None:
    step = run.progress.step
    folder = run.dir.checkpoints / f"step-{step}"
    tensors = gather_adapter(run.adapter)
    state = {
        "weights": collect_weights(run.adapter, run.optimizer),
        "random_states": collect_random_states(run.accelerator),
        "progress": dataclasses.asdict(run.progress),
    }
    if run.accelerator.is_main_process:
        with write_folder(folder) as partial:
            _write_adapter(run, partial, tensors)
            torch.save(state, partial / "trainer_state.pt")
            num_bytes = write_manifest(partial, run=run.fingerprint, step=step, metrics=metrics)
        remove_old_checkpoints(run.dir.checkpoints, run.training.keep_checkpoints)
        path = str(folder.relative_to(run.dir.path))
        run.reporter.report(CheckpointEvent(step=step, path=path, bytes=num_bytes, metrics=metrics))
    run.saved_step = step


def _find_best(run: _Run) -> Checkpoint | None:
    """With early stopping, the best validated checkpoint, which holds the adapter already."""
    if run.training.early_stopping is None:
        return None
    run.accelerator.wait_for_everyone()  # Rank 0 may still write the newest.
    best = find_best_checkpoint(run.dir.checkpoints)
    if best is not None and (damage := find_damage(best)):
        raise TrainerError(
            "checkpoint_damaged",
            f"{best.path.name}, the best checkpoint, is damaged: {damage}.",
            remedy="Remove its folder and start the run again.",
        )
    return best


def _save_adapter(run: _Run, best: Checkpoint | None) -> None:
    """The best one where there is one, else the last step's."""
    run.reporter.report(PhaseEvent(phase="saving", message="saving the adapter"))
    tensors = gather_adapter(run.adapter)
    if run.accelerator.is_main_process:
        with write_folder(run.dir.adapter) as partial:
            if best is None:
                _write_adapter(run, partial, tensors)
            else:
                for name in best.files.keys() - {"trainer_state.pt"}:
                    shutil.copy(best.path / name, partial / name)
        log.info("saved the adapter%s, %d tensors", f" of step {best.step}" if best else "", len(tensors))
    run.accelerator.wait_for_everyone()


def _write_adapter(run: _Run, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    config, model_id = run.adapter.peft_config["default"], run.spec.model.id
    write_adapter(folder, config, tensors, run.tokenizer, model_id=model_id, device=run.accelerator.device)
