"""DeepSpeed ZeRO-1/2/3 for the run: every value explicit, nothing left to defaults that change between versions."""

from typing import Any

from accelerate.utils import DeepSpeedPlugin

from trainer_core.config import TrainingConfig
from trainer_core.planning.deepspeed_json import merge_deepspeed_json
from trainer_core.planning.plan import Plan
from trainer_core.run_dir import RunSpec


def build_deepspeed_plugin(training: TrainingConfig, plan: Plan) -> DeepSpeedPlugin | None:
    """None where the run does not use DeepSpeed."""
    if not plan.uses_deepspeed:
        return None
    return DeepSpeedPlugin(hf_ds_config=build_deepspeed_config(training, plan), zero3_init_flag=plan.stage == 3)


def build_deepspeed_config(training: TrainingConfig, plan: Plan) -> dict[str, Any]:
    """DeepSpeed's own JSON for a run with ZeRO."""
    zero: dict[str, Any] = {"stage": plan.stage}
    if plan.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        if plan.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": training.global_batch_size,
        "gradient_clipping": training.max_grad_norm,
        # A step that DeepSpeed skips on its own would go unnoticed; the loop ends the run at a loss that is not finite.
        "bf16": {"enabled": training.precision == "bf16", "check_grad_overflow": False},
        "zero_optimization": zero,
    }
    return merge_deepspeed_json(ours, training.deepspeed.config or {})


def connect_deepspeed(spec: RunSpec) -> None:
    """Tell DeepSpeed of the other ranks before a model loads, whose weights it cuts while they load."""
    import deepspeed  # its import takes seconds and only runs with DeepSpeed need it

    deepspeed.init_distributed(dist_backend="nccl" if spec.gpus else "gloo")
    assert deepspeed.comm.get_world_size() == spec.num_processes


def build_operators(spec: RunSpec, plan: Plan) -> None:
    """Compile what DeepSpeed compiles at its first use, once: several ranks would all do it, a minute each."""
    from deepspeed.ops.op_builder import CPUAdamBuilder, ShareMemCommBuilder  # seconds, as above

    if plan.offload == "cpu":
        CPUAdamBuilder().load(verbose=False)
    if spec.gpus == 0:
        ShareMemCommBuilder().load(verbose=False)
