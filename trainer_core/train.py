"""The training run, read from top to bottom. One code path: CPU, one GPU, DDP and DeepSpeed ZeRO-2/3.

Every rank runs `train`; only rank 0 reports and writes.
"""

import dataclasses
import functools
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from peft import PeftModel

from trainer_core.adapters.save import gather_adapter, write_adapter
from trainer_core.checkpoints import collect_trainer_state, remove_old_checkpoints, write_folder, write_manifest
from trainer_core.config import TrainingConfig
from trainer_core.data.batches import BatchPlan, PreparedRows, Sequences, plan_batches
from trainer_core.deepspeed_config import build_deepspeed_plugin, connect_deepspeed
from trainer_core.errors import ConfigurationError, TrainerError
from trainer_core.loss import compute_sequence_nll
from trainer_core.model import add_lora, check_packing, check_vocabulary, load_base_model, set_evaluation_mode
from trainer_core.reporting import CheckpointEvent, MetricsEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec
from trainer_core.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Run:
    """What one rank's steps share."""

    dir: RunDir
    spec: RunSpec
    accelerator: Accelerator
    reporter: Reporter
    tokenizer: Any
    adapter: PeftModel
    model: Any
    """The adapter on its base, in whatever DDP or DeepSpeed wrap it."""
    optimizer: Any
    train: Sequences
    validation: Sequences
    plan: BatchPlan
    started: float
    num_tokens: int = 0
    """Trained on so far, over all ranks, without padding."""

    @property
    def training(self) -> TrainingConfig:
        return self.spec.training


def train(run_dir: RunDir) -> None:
    """Train on the prepared rows and write `adapter/`. Raises TrainerError."""
    run = _set_up(run_dir)
    _report_start(run)
    _report_step(run, 0, _evaluate(run))
    for step in range(1, run.plan.num_steps + 1):
        is_last = step == run.plan.num_steps
        metrics = _train_step(run, step)
        if is_last or step % run.training.eval_every_steps == 0:
            metrics |= _evaluate(run)
        _report_step(run, step, metrics)
        if is_last or step % run.training.save_every_steps == 0:
            _save_checkpoint(run, step, metrics)
    _save_adapter(run)


def _set_up(run_dir: RunDir) -> _Run:
    spec, rows = run_dir.load_spec(), PreparedRows(run_dir.prepared)
    training = spec.training
    arrange = functools.partial(Sequences, rows, max_seq_len=training.max_seq_len, packing=training.packing)
    sequences, validation = arrange(rows.train), arrange(rows.validation)
    plan = plan_batches(training, spec.num_processes, sequences.lengths, on_gpu=spec.gpus > 0)

    accelerator = _build_accelerator(spec, plan)
    reporter = Reporter(run_dir.events if accelerator.is_main_process else Path(os.devnull))
    set_seed(training.seed)  # the same on every rank: the adapter's first weights are drawn from it
    tokenizer = load_tokenizer(spec)
    adapter = _load_model(spec, accelerator, tokenizer)
    trainable = [weight for weight in adapter.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)
    model, optimizer = accelerator.prepare(adapter, optimizer)
    if training.packing:
        check_packing(model, len(tokenizer), accelerator.device)
    set_seed(training.seed + accelerator.process_index)  # dropout differs between ranks
    now = time.perf_counter()
    return _Run(
        run_dir, spec, accelerator, reporter, tokenizer, adapter, model, optimizer, sequences, validation, plan, now
    )


def _build_accelerator(spec: RunSpec, plan: BatchPlan) -> Accelerator:
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


def _load_model(spec: RunSpec, accelerator: Accelerator, tokenizer: Any) -> PeftModel:
    stage = spec.training.deepspeed.stage
    base = load_base_model(spec.model, spec.training, None if stage == 3 else accelerator.device)
    check_vocabulary(base, tokenizer)
    # DeepSpeed keeps float32 copies of the adapter itself; float32 weights beside a bfloat16 model break its gathering.
    return add_lora(base, spec.training, float32_adapter=stage not in (2, 3))


def _report_start(run: _Run) -> None:
    plan = run.plan
    details = {
        "sequences": len(run.train),
        "validation_sequences": len(run.validation),
        "max_steps": plan.num_steps,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation": plan.accumulation,
        "num_ranks": plan.num_ranks,
    }
    run.reporter.report(PhaseEvent(phase="training", message=f"training for {plan.num_steps} steps", details=details))
    log.info("training %s", " ".join(f"{name}={value}" for name, value in details.items()))


def _train_step(run: _Run, step: int) -> dict[str, float]:
    """One optimizer step, counted from 1."""
    started, plan, accelerator = time.perf_counter(), run.plan, run.accelerator
    run.model.train()
    learning_rate = compute_learning_rate(run.training, step, plan.num_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate

    # The sum of all gradients over the number of supervised tokens in the whole step: neither accumulation nor packing
    # nor the number of ranks changes it. accelerate divides by micro-batches and ranks, so that is multiplied back.
    num_supervised = int(run.train.supervised[plan.get_sequences(step - 1)].sum())
    scale = plan.accumulation * plan.num_ranks / num_supervised
    nll = torch.zeros((), device=accelerator.device)
    for micro_batch in plan.get_micro_batches(step - 1, accelerator.process_index):
        with accelerator.accumulate(run.model):
            micro_nll = _compute_nll(run, run.train, micro_batch)
            accelerator.backward(micro_nll * scale)
            nll += micro_nll.detach()
            if accelerator.sync_gradients:
                grad_norm = float(accelerator.clip_grad_norm_(run.model.parameters(), run.training.max_grad_norm))
            run.optimizer.step()
            run.optimizer.zero_grad()

    loss = float(accelerator.reduce(nll)) / num_supervised
    _check_step(step, loss, grad_norm)
    num_tokens, padding_fraction = _count_tokens(run, step)
    run.num_tokens += num_tokens
    return {
        "loss": loss,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "tokens_per_second": num_tokens / (time.perf_counter() - started),
        "padding_fraction": padding_fraction,
    }


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


def _compute_nll(run: _Run, sequences: Sequences, micro_batch: list[int]) -> torch.Tensor:
    """The summed loss of a micro-batch, float32 scalar."""
    batch = sequences.collate(micro_batch).to(run.accelerator.device)
    # The adapter's float32 weights enter matrix products in bfloat16; DeepSpeed's adapter is bfloat16 already.
    use_autocast = run.training.precision == "bf16" and run.training.deepspeed.stage not in (2, 3)
    with torch.autocast(run.accelerator.device.type, dtype=torch.bfloat16, enabled=use_autocast):
        return compute_sequence_nll(run.model, batch).sum()


def _check_step(step: int, loss: float, grad_norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainerError(
            "loss_not_finite",
            f"Step {step} gave the loss {loss} and the gradient norm {grad_norm}.",
            remedy="Lower the learning rate, or train in fp32 to find out whether the number format is the cause.",
        )
    if step == 1 and grad_norm == 0:
        raise TrainerError(
            "no_gradient", "No gradient reached the adapter in the first step.", remedy="Check lora.target_modules."
        )


def _count_tokens(run: _Run, step: int) -> tuple[int, float]:
    """Tokens of a step over all ranks, and the share of padding beside them."""
    lengths = run.train.lengths
    micro_batches = [b for rank in range(run.plan.num_ranks) for b in run.plan.get_micro_batches(step - 1, rank) if b]
    num_tokens = sum(int(lengths[b].sum()) for b in micro_batches)
    num_places = sum(len(b) * int(lengths[b].max()) for b in micro_batches)
    return num_tokens, 1 - num_tokens / num_places


@torch.no_grad()
def _evaluate(run: _Run) -> dict[str, float]:
    """Mean loss per supervised token on the rows held out; nothing where there are none."""
    if len(run.validation) == 0:
        return {}
    set_evaluation_mode(run.model)
    nll = torch.zeros((), device=run.accelerator.device)
    for micro_batch in run.plan.cut_for_evaluation(len(run.validation), run.accelerator.process_index):
        nll += _compute_nll(run, run.validation, micro_batch)
    loss = float(run.accelerator.reduce(nll)) / int(run.validation.supervised.sum())
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}  # e^710 is no float


def _report_step(run: _Run, step: int, metrics: dict[str, float]) -> None:
    num_steps, seconds = run.plan.num_steps, time.perf_counter() - run.started
    event = MetricsEvent(
        step=step,
        max_steps=num_steps,
        epoch=run.plan.get_epoch(step),
        tokens=run.num_tokens,
        eta_seconds=seconds / step * (num_steps - step) if step else None,
        values=metrics,
    )
    run.reporter.report(event)
    log.info("step %d/%d %s", step, num_steps, " ".join(f"{name}={value:.5g}" for name, value in metrics.items()))


def _save_checkpoint(run: _Run, step: int, metrics: dict[str, float]) -> None:
    folder = run.dir.checkpoints / f"step-{step}"
    tensors = gather_adapter(run.adapter)
    trainer_state = collect_trainer_state(run.accelerator, run.optimizer)
    if run.accelerator.is_main_process:
        with write_folder(folder) as partial:
            _write_adapter(run, partial, tensors)
            torch.save(trainer_state, partial / "trainer_state.pt")
            num_bytes = write_manifest(partial, step=step, metrics=metrics)
        remove_old_checkpoints(run.dir.checkpoints, run.training.keep_checkpoints)
        path = str(folder.relative_to(run.dir.path))
        run.reporter.report(CheckpointEvent(step=step, path=path, bytes=num_bytes, metrics=metrics))


def _save_adapter(run: _Run) -> None:
    run.reporter.report(PhaseEvent(phase="saving", message="saving the adapter"))
    tensors = gather_adapter(run.adapter)
    if run.accelerator.is_main_process:
        with write_folder(run.dir.adapter) as partial:
            _write_adapter(run, partial, tensors)
        log.info("saved the adapter, %d tensors", len(tensors))
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


def _write_adapter(run: _Run, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_adapter(folder, run.adapter.peft_config["default"], tensors, run.tokenizer, model_id=run.spec.model.id)
