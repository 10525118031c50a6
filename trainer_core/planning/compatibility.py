"""Which settings go together. Torch-free, so that the API refuses what cannot train before anything is queued.

`find_conflicts` is the one place that says so: the submission, the planner, the trainer and the table in
docs/training.md (trainer_core.planning.matrix) all ask it.
"""

from trainer_core.config import TrainingConfig
from trainer_core.planning.deepspeed_json import Conflict, find_json_conflicts, get_stage

CHAT_TEMPLATES = ("alpaca", "plain")
"""Names of the built-in templates, whose texts are in trainer_core.data.templates."""


def find_conflicts(training: TrainingConfig, *, num_processes: int) -> list[Conflict]:
    """Every reason why the configuration cannot train; an empty list when there is none.

    What trains on GPUs trains on the CPU too, and the other way round.
    """
    return [
        *_check_chat_template(training),
        *_check_precision(training),
        *_check_variant(training),
        *_check_offload(training),
        *_check_optimizer(training),
        *_check_batch_sizes(training, num_processes),
        *find_json_conflicts(training, num_processes=num_processes),
    ]


def _check_chat_template(training: TrainingConfig) -> list[Conflict]:
    if training.chat_template is None or training.chat_template in CHAT_TEMPLATES:
        return []
    return [
        Conflict(
            "unknown_chat_template",
            "chat_template",
            f"There is no built-in chat template {training.chat_template!r}.",
            f"Use one of {', '.join(CHAT_TEMPLATES)}, or null for the model's own.",
        )
    ]


def _check_precision(training: TrainingConfig) -> list[Conflict]:
    if training.precision != "fp16":
        return []
    return [
        Conflict(
            "fp16_not_supported",
            "precision",
            "Training in fp16 is not supported: its gradients overflow, and adapters need a loss scale to survive it.",
            "Use 'bf16', which takes the same memory and time and does not overflow; 'fp32' on cards before Ampere.",
        )
    ]


def _check_variant(training: TrainingConfig) -> list[Conflict]:
    if training.lora.variant != "dora" or training.quantization == "none":
        return []
    return [
        Conflict(
            "dora_quantized",
            "lora.variant",
            f"DoRA takes norms of the base's weights, which {training.quantization} weights do not give exactly.",
            "Use variant 'lora' or 'rslora', or quantization 'none'.",
        )
    ]


def _check_offload(training: TrainingConfig) -> list[Conflict]:
    offload, stage = training.deepspeed.offload, get_stage(training)
    if offload == "nvme":
        return [
            Conflict(
                "nvme_offload_not_supported",
                "deepspeed.offload",
                "Offload to NVMe is not supported: an adapter's optimizer state is a gigabyte at most.",
                "Use offload 'cpu'; where the base does not fit, quantization '4bit' is faster than any offload.",
            )
        ]
    if offload == "cpu" and stage in ("none", 1):
        return [
            Conflict(
                "offload_needs_zero",
                "deepspeed.offload",
                f"Only ZeRO-2 and ZeRO-3 offload, and deepspeed.stage is {stage!r}.",
                "Set deepspeed.stage to 2, 3 or 'auto', or offload to 'none'.",
            )
        ]
    return []


def _check_optimizer(training: TrainingConfig) -> list[Conflict]:
    stage = get_stage(training)
    uses_deepspeed = stage in (1, 2, 3) or (stage == "auto" and training.deepspeed.offload == "cpu")
    if training.optimizer != "adamw_8bit" or not uses_deepspeed:
        return []
    return [
        Conflict(
            "adamw_8bit_with_deepspeed",
            "optimizer",
            "DeepSpeed divides the optimizer's state among the processes, and cannot divide one of 8 bits.",
            "Use optimizer 'adamw', whose state ZeRO divides; or deepspeed.stage 'none'.",
        )
    ]


def _check_batch_sizes(training: TrainingConfig, num_processes: int) -> list[Conflict]:
    size, batch = training.micro_batch_size, training.global_batch_size
    if batch % (num_processes * (1 if size == "auto" else size)) == 0:
        return []
    micro = "" if size == "auto" else f" times micro_batch_size {size}"
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    return [
        Conflict(
            "batch_sizes_do_not_divide",
            "global_batch_size",
            f"global_batch_size {batch} is no multiple of {processes}{micro}.",
            "Choose a global_batch_size that is, or leave micro_batch_size to 'auto'.",
        )
    ]
