"""The plan chooses the fastest way that fits, obeys what was asked for, and refuses with numbers."""

from typing import Any

import pytest

from tests.unit.trainer_core.shapes import LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B, build_llama_facts
from trainer_core.config import TrainingConfig
from trainer_core.errors import ConfigurationError
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.memory import Engine, predict_memory
from trainer_core.planning.plan import Plan, Workload, plan_training

GIB = 2**30
MODEL_7B, MODEL_8B, MODEL_70B = (build_llama_facts(config) for config in (LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B))


def plan(facts: Any = MODEL_8B, *, gpus: int = 1, gpu_gib: float | None = 80, **settings: Any) -> Plan:
    """On GPUs of that size, in a host with a terabyte."""
    training = TrainingConfig.model_validate(settings)
    memory = None if gpu_gib is None else int(gpu_gib * GIB)
    return plan_training(
        training,
        num_processes=max(1, gpus),
        gpus=gpus,
        longest_sequence=training.max_seq_len,
        facts=facts,
        hardware=Hardware(gpu_memory_bytes=memory, host_memory_bytes=1000 * GIB),
    )


def refuse(*arguments: Any, **settings: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        plan(*arguments, **settings)
    return caught.value


def predict_gib(settings: dict[str, Any], tokens: int, facts: Any = MODEL_8B, **engine: Any) -> float:
    usual = {"num_processes": 1, "on_gpu": True, "stage": 0, "offload": "none", "gradient_checkpointing": False}
    prediction = predict_memory(
        TrainingConfig.model_validate(settings), facts, Engine.model_validate(usual | engine), tokens
    )
    return prediction.peak / GIB


# --- Predictions against measurements of others ---


def test_an_8b_without_recomputation_takes_what_was_measured_for_pefts_own_layers() -> None:
    """LoRAFusion's capacity on an H100 of 80 GB is 6,656 tokens: 72 GB with the dropout that its runs have."""
    peft = predict_gib({"lora": {"dropout": 0.1}}, 6656) * GIB / 1e9
    fused = predict_gib({}, 6656) * GIB / 1e9

    assert peft == pytest.approx(72, rel=0.1)
    assert 55 < fused < peft


def test_qlora_of_an_8b_stays_under_10_gib() -> None:
    """torchtune: 7.4 GiB for QLoRA of an 8B at 2 x 2,048 with recomputation, on an RTX 4090."""
    predicted = predict_gib({"quantization": "4bit", "lora": {"r": 32}}, 2048, gradient_checkpointing=True)

    assert 7.4 < predicted < 10


def test_lora_of_an_8b_with_recomputation_is_near_what_was_measured() -> None:
    """torchtune: 16.2 GiB for LoRA at 2 x 2,048 with recomputation, on an RTX 4090."""
    assert predict_gib({}, 4096, gradient_checkpointing=True) == pytest.approx(16.2, rel=0.25)


def test_a_70b_cut_among_8_gpus_takes_an_eighth_and_what_is_gathered() -> None:
    engine = Engine(num_processes=8, on_gpu=True, stage=3, offload="none", gradient_checkpointing=True)

    prediction = predict_memory(TrainingConfig(), MODEL_70B, engine, 4096)

    assert prediction.base == pytest.approx(2 * MODEL_70B.num_weights / 8 + 2 * 128256 * 8192, rel=0.01)
    assert prediction.peak < 40 * GIB


def test_a_quantised_base_is_whole_while_it_loads_under_zero_3() -> None:
    engine = Engine(num_processes=8, on_gpu=True, stage=3, offload="none", gradient_checkpointing=True)

    prediction = predict_memory(TrainingConfig(quantization="4bit"), MODEL_70B, engine, 2048)

    assert prediction.loading > 35e9
    assert prediction.peak == prediction.loading > 3 * prediction.base


def test_zero_3_does_not_cut_an_8bit_base() -> None:
    training = TrainingConfig(quantization="8bit")
    whole, cut = (
        predict_memory(
            training,
            MODEL_8B,
            Engine(num_processes=8, on_gpu=True, stage=stage, offload="none", gradient_checkpointing=True),
            2048,
        )
        for stage in (0, 3)
    )

    assert cut.base == whole.base


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"precision": "fp32"}, {}),
        ({}, {"quantization": "8bit"}),
        ({"quantization": "8bit"}, {"quantization": "4bit"}),
        ({"lora": {"r": 64}}, {}),
        ({"lora": {"variant": "dora"}}, {"lora": {"dropout": 0.1}}),
        ({"lora": {"dropout": 0.1}}, {}),
        ({}, {"optimizer": "adamw_8bit"}),
    ],
)
def test_what_takes_more_is_predicted_to_take_more(more: dict[str, Any], less: dict[str, Any]) -> None:
    assert predict_gib(more, 2048) > predict_gib(less, 2048)


@pytest.mark.parametrize("stages", [(1, 2), (2, 3)])
def test_each_zero_stage_takes_less_than_the_one_before(stages: tuple[int, int]) -> None:
    first, second = (predict_gib({}, 2048, MODEL_70B, num_processes=8, stage=stage) for stage in stages)

    assert second < first


# --- Choices ---


@pytest.mark.parametrize(
    ("settings", "stage", "offload", "recomputes"),
    [
        ({"facts": MODEL_8B, "gpu_gib": 80}, 0, "none", False),
        ({"facts": MODEL_8B, "gpu_gib": 24}, 0, "none", True),
        ({"facts": MODEL_8B, "gpu_gib": 80, "gpus": 8}, 0, "none", False),
        ({"facts": MODEL_8B, "gpu_gib": 16, "gpus": 8}, 3, "none", True),
        ({"facts": MODEL_70B, "gpu_gib": 80, "gpus": 8}, 3, "none", False),
        ({"facts": MODEL_70B, "gpu_gib": 80, "gpus": 8, "max_seq_len": 4096}, 3, "none", True),
        ({"facts": MODEL_70B, "gpu_gib": 80, "gpus": 8, "quantization": "4bit"}, 0, "none", True),
        ({"facts": MODEL_70B, "gpu_gib": 24, "gpus": 8, "deepspeed": {"offload": "auto"}}, 3, "cpu", True),
        ({"facts": MODEL_8B, "gpu_gib": 80, "deepspeed": {"offload": "auto"}}, 0, "none", False),
        ({"facts": MODEL_8B, "gpu_gib": 80, "deepspeed": {"offload": "cpu"}}, 2, "cpu", False),
        ({"facts": MODEL_8B, "gpu_gib": None, "gpus": 8}, 0, "none", False),
        ({"facts": None, "gpu_gib": 8, "gpus": 8}, 0, "none", False),
    ],
)
def test_auto_is_the_fastest_that_fits(settings: dict[str, Any], stage: int, offload: str, recomputes: bool) -> None:
    chosen = plan(**settings)

    assert (chosen.stage, chosen.offload, chosen.gradient_checkpointing) == (stage, offload, recomputes)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("recomputes", [True, False])
def test_what_was_asked_for_is_obeyed(stage: int, recomputes: bool) -> None:
    chosen = plan(gpus=2, micro_batch_size=2, gradient_checkpointing=recomputes, deepspeed={"stage": stage})

    assert (chosen.stage, chosen.micro_batch_size, chosen.accumulation) == (stage, 2, 4)
    assert chosen.gradient_checkpointing is recomputes
    assert chosen.uses_deepspeed


def test_the_stage_may_come_from_the_users_json() -> None:
    assert plan(gpus=2, deepspeed={"config": {"zero_optimization": {"stage": 2}}}).stage == 2


def test_an_8_bit_optimizer_never_meets_deepspeed() -> None:
    refusal = refuse(MODEL_70B, gpus=8, optimizer="adamw_8bit", deepspeed={"offload": "auto"})

    assert refusal.code == "does_not_fit"
    assert plan(gpus=8, optimizer="adamw_8bit").stage == 0


def test_the_micro_batch_shrinks_before_anything_slower_is_chosen() -> None:
    roomy, tight = plan(gpu_gib=80, max_seq_len=2048), plan(gpu_gib=40, max_seq_len=2048)

    assert (roomy.micro_batch_size, tight.micro_batch_size) == (4, 1)
    assert not tight.gradient_checkpointing
    assert roomy.micro_batch_size * roomy.accumulation == tight.micro_batch_size * tight.accumulation == 16


def test_every_choice_fits() -> None:
    for gpu_gib in (24, 40, 48, 80, 141):
        for length in (512, 2048, 8192):
            for quantization in ("none", "4bit"):
                chosen = plan(gpu_gib=gpu_gib, max_seq_len=length, quantization=quantization)
                assert chosen.memory is not None
                assert chosen.memory.peak <= gpu_gib * GIB


def test_an_automatic_micro_batch_divides_the_global_one_and_stays_within_the_budget() -> None:
    def choose(num_processes: int, longest: int, gpus: int) -> int:
        training = TrainingConfig(global_batch_size=12)
        return plan_training(
            training, num_processes=num_processes, gpus=gpus, longest_sequence=longest
        ).micro_batch_size

    assert choose(1, 512, 0) == 2
    assert choose(2, 512, 2) == 6
    assert choose(1, 100_000, 1) == 1


@pytest.mark.parametrize(("batch", "micro", "num_processes"), [(16, 8, 4), (16, "auto", 3)])
def test_batch_sizes_that_do_not_divide_are_refused(batch: int, micro: int | str, num_processes: int) -> None:
    refusal = refuse(gpus=num_processes, global_batch_size=batch, micro_batch_size=micro)

    assert refusal.code == "batch_sizes_do_not_divide"


def test_on_the_cpu_every_process_has_its_own_base_in_the_hosts_memory() -> None:
    def plan_on_cpu(num_processes: int) -> Plan:
        return plan_training(
            TrainingConfig.model_validate({"deepspeed": {"stage": "none"}}),
            num_processes=num_processes,
            gpus=0,
            longest_sequence=512,
            facts=MODEL_8B,
            hardware=Hardware(host_memory_bytes=64 * GIB),
        )

    alone = plan_on_cpu(1)
    assert alone.memory is not None
    assert alone.host_memory_bytes == alone.memory.peak
    with pytest.raises(ConfigurationError) as caught:
        plan_on_cpu(4)
    assert "for each process" in caught.value.message


def test_hosts_share_the_load() -> None:
    two_hosts = Hardware(host_memory_bytes=64 * GIB, num_hosts=2)

    chosen = plan_training(
        TrainingConfig(), num_processes=2, gpus=0, longest_sequence=512, facts=MODEL_8B, hardware=two_hosts
    )

    assert (chosen.host_memory_bytes or 0) <= 2 * 64 * GIB


# --- Refusals ---


def test_a_plan_that_cannot_fit_is_refused_with_the_numbers_and_the_nearest_that_would() -> None:
    refusal = refuse(MODEL_70B, gpu_gib=48)

    assert (refusal.code, refusal.details["field"]) == ("does_not_fit", "training")
    assert refusal.details["needed_bytes"] > refusal.details["available_bytes"] == 48 * GIB
    assert "has 48.0 GiB" in refusal.message
    assert refusal.remedy == "Use quantization '4bit', or deepspeed.offload 'auto'."


def test_a_shorter_sequence_is_offered_at_the_longest_that_fits() -> None:
    refusal = refuse(MODEL_8B, gpu_gib=24, max_seq_len=65536)

    assert "max_seq_len 8192" in refusal.remedy
    assert plan(MODEL_8B, gpu_gib=24, max_seq_len=8192)
    assert refuse(MODEL_8B, gpu_gib=24, max_seq_len=16384)


def test_what_was_asked_for_is_offered_back() -> None:
    recomputation = refuse(MODEL_8B, gpu_gib=24, gradient_checkpointing=False)
    micro_batch = refuse(MODEL_8B, gpu_gib=24, micro_batch_size=16, max_seq_len=4096)
    stage = refuse(MODEL_8B, gpus=8, gpu_gib=16, deepspeed={"stage": "none"})

    assert "gradient_checkpointing 'auto'" in recomputation.remedy
    assert "micro_batch_size 'auto'" in micro_batch.remedy
    assert "deepspeed.stage 'auto'" in stage.remedy


def test_two_changes_are_offered_where_one_is_not_enough() -> None:
    refusal = refuse(MODEL_8B, gpu_gib=9, max_seq_len=16384, micro_batch_size=1)

    assert refusal.remedy.startswith("Use quantization '4bit' with")


def test_nothing_is_offered_where_nothing_helps() -> None:
    refusal = refuse(MODEL_70B, gpu_gib=3)

    assert refusal.remedy == "No one setting makes it fit: use larger GPUs, or more of them."


def test_the_hosts_memory_counts_for_offload() -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_training(
            TrainingConfig.model_validate({"deepspeed": {"stage": 3, "offload": "cpu"}}),
            num_processes=8,
            gpus=8,
            longest_sequence=2048,
            facts=MODEL_70B,
            hardware=Hardware(gpu_memory_bytes=80 * GIB, host_memory_bytes=64 * GIB),
        )

    assert "of the host's memory, which has 64.0 GiB" in caught.value.message


def test_every_conflict_is_in_the_refusal() -> None:
    refusal = refuse(precision="fp16", deepspeed={"offload": "nvme"})

    assert refusal.code == "fp16_not_supported"
    assert [c["code"] for c in refusal.details["conflicts"]] == ["fp16_not_supported", "nvme_offload_not_supported"]


# --- Work ---


def test_steps_tokens_disk_and_time_are_told_where_the_rows_are_known() -> None:
    def count(**settings: Any) -> Plan:
        return plan_training(
            TrainingConfig.model_validate(settings),
            num_processes=1,
            gpus=0,
            longest_sequence=512,
            facts=MODEL_8B,
            workload=Workload(num_sequences=100, num_tokens=50_000, tokens_per_second=1000),
        )

    by_epochs, by_steps = count(epochs=2.5), count(max_steps=10)

    assert (by_epochs.num_steps, by_epochs.num_tokens, by_epochs.seconds) == (16, 125_000, 125)
    assert (by_steps.num_steps, by_steps.num_tokens) == (10, 80_000)
    assert by_epochs.disk_bytes == (4 * 16 + 4) * 41_943_040 + 5 * 50_000


def test_nothing_is_told_about_rows_that_are_not_known() -> None:
    chosen = plan()

    assert (chosen.num_steps, chosen.num_tokens, chosen.seconds) == (None, None, None)
    assert chosen.disk_bytes
