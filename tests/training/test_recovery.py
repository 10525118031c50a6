"""Memory that runs out and a loss that blows up: the run goes on with another plan, or ends with the reason."""

from pathlib import Path

import pytest

from tests.training.conftest import CreateRun, TrainedRun, list_notices, read_events, read_steps, run_trainer
from trainer_core.config import TrainingConfig
from trainer_core.planning.plan import Plan
from trainer_core.recovery import MAX_CHANGES, is_spike, revise_plan
from trainer_core.reporting import ErrorEvent, NoticeEvent
from trainer_core.run_dir import RunDir

EXACT = {"precision": "fp32", "packing": False, "micro_batch_size": 4}
"""In float32 only real differences are visible; unpacked, four sequences are about 600 tokens."""
PLAN = Plan(
    num_processes=1,
    stage=0,
    offload="none",
    micro_batch_size=6,
    accumulation=2,
    gradient_checkpointing=False,
    precision="bf16",
    quantization="none",
    micro_batch_tokens=1536,
)


def get_error(run_dir: RunDir) -> ErrorEvent:
    [error] = [event for event in read_events(run_dir) if isinstance(event, ErrorEvent)]
    return error


def test_one_process_out_of_memory_starts_the_step_again_with_half(
    create_run: CreateRun, trained_run: TrainedRun
) -> None:
    undisturbed, run_dir = trained_run(training=EXACT), create_run(training=EXACT)
    result = run_trainer("train", run_dir, max_tokens=480)
    assert result.returncode == 0, result.stderr
    plan = run_dir.load_plan()
    assert (plan.micro_batch_size, plan.accumulation) == (2, 2)
    assert list_notices(run_dir) == ["out_of_memory"]
    check_close(undisturbed, run_dir)


def test_deepspeed_out_of_memory_begins_again_with_half(create_run: CreateRun, trained_run: TrainedRun) -> None:
    """Its engine would go on with the gradients of half a step, and with the old accumulation."""
    settings = {**EXACT, "deepspeed": {"stage": 2}}
    undisturbed, run_dir = trained_run(training=EXACT), create_run(training=settings)
    result = run_trainer("train", run_dir, max_tokens=480)
    assert result.returncode == 0, result.stderr
    assert run_dir.load_plan().micro_batch_size == 2
    check_close(undisturbed, run_dir)


def test_ranks_out_of_memory_begin_again_with_half(create_run: CreateRun, trained_run: TrainedRun) -> None:
    settings = {**EXACT, "micro_batch_size": 2}
    undisturbed, run_dir = trained_run(training=EXACT), create_run(training=settings, num_processes=2)
    result = run_trainer("train", run_dir, max_tokens=250, rank=1)
    assert result.returncode == 0, result.stderr
    plan = run_dir.load_plan()
    assert (plan.micro_batch_size, plan.accumulation) == (1, 2)
    assert list_notices(run_dir) == ["out_of_memory"]
    check_close(undisturbed, run_dir)


def test_memory_that_never_suffices_ends_the_run_after_everything_was_tried(create_run: CreateRun) -> None:
    run_dir = create_run(training={**EXACT, "micro_batch_size": 2})
    assert run_trainer("train", run_dir, max_tokens=1).returncode == 1
    assert get_error(run_dir).code == "out_of_memory"
    plan = run_dir.load_plan()
    assert (plan.micro_batch_size, plan.gradient_checkpointing) == (1, True)
    assert len(plan.changes) == 2
    assert not run_dir.adapter.exists()


def test_a_loss_that_is_no_number_rolls_back_once_with_a_lower_rate(create_run: CreateRun, tmp_path: Path) -> None:
    run_dir = create_run(training={"save_every_steps": 2, "lr_schedule": "constant"})
    # The warm-up and three steps: the run has a checkpoint of step 2 then.
    result = run_trainer("train", run_dir, nan_at_call=4, marker=str(tmp_path / "struck"))
    assert result.returncode == 0, result.stderr
    assert list_notices(run_dir) == ["loss_not_finite", "resumed"]
    [resumed] = [e for e in read_events(run_dir) if isinstance(e, NoticeEvent) and e.code == "resumed"]
    assert resumed.details["step"] == 2
    rates = [event.values["learning_rate"] for event in read_events(run_dir) if event.type == "metrics" and event.step]
    assert rates == pytest.approx([0.005, 0.005, 0.0025, 0.0025])


def test_a_loss_that_blows_up_again_ends_the_run_with_the_reason(create_run: CreateRun) -> None:
    run_dir = create_run(num_processes=2)
    assert run_trainer("train", run_dir, nan_at_call=3).returncode == 1
    assert list_notices(run_dir) == ["loss_not_finite"]
    error = get_error(run_dir)
    assert error.code == "loss_not_finite"
    assert error.remedy
    assert not run_dir.adapter.exists()


def test_a_plan_is_halved_then_recomputes_then_offloads() -> None:
    training = TrainingConfig.model_validate({"deepspeed": {"offload": "auto"}})
    plan: Plan | None = PLAN
    seen = []
    while plan is not None:
        seen.append((plan.micro_batch_size, plan.accumulation, plan.gradient_checkpointing, plan.stage, plan.offload))
        plan = revise_plan(plan, training, "out_of_memory")
    assert seen == [
        (6, 2, False, 0, "none"),
        (3, 4, False, 0, "none"),
        (1, 12, False, 0, "none"),
        (1, 12, True, 0, "none"),
        (1, 12, True, 3, "cpu"),
    ]


def test_what_was_asked_for_is_not_changed() -> None:
    training = TrainingConfig.model_validate({"gradient_checkpointing": False, "deepspeed": {"offload": "none"}})
    smallest = PLAN.model_copy(update={"micro_batch_size": 1, "accumulation": 12})
    assert revise_plan(smallest, training, "out_of_memory") is None


def test_the_number_of_changes_is_bounded() -> None:
    plan: Plan | None = PLAN.model_copy(update={"micro_batch_size": 2**20, "accumulation": 1})
    num_changes = -1
    while plan is not None:
        num_changes += 1
        plan = revise_plan(plan, TrainingConfig(), "out_of_memory")
    assert num_changes == MAX_CHANGES


def test_other_errors_change_no_plan() -> None:
    assert revise_plan(PLAN, TrainingConfig(), "gpu_not_found") is None


@pytest.mark.parametrize(("loss", "expected"), [(2.2, False), (3.9, False), (4.1, True)])
def test_a_spike_is_far_above_the_recent_losses(loss: float, expected: bool) -> None:
    assert is_spike(loss, [2.0] * 20) == expected


def test_near_zero_a_doubled_loss_is_noise() -> None:
    assert not is_spike(0.09, [0.03] * 20)


def test_without_a_past_nothing_is_a_spike() -> None:
    assert not is_spike(100.0, [2.0] * 5)


def check_close(expected: RunDir, found: RunDir) -> None:
    wanted, steps = read_steps(expected), read_steps(found)
    assert steps.keys() == wanted.keys()
    for step, metrics in wanted.items():
        assert steps[step] == pytest.approx(metrics, abs=2e-5, rel=1e-4)
