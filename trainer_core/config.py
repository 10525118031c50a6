"""TrainingConfig: everything that a client may ask of a training run.

The one definition used by the API, the job's row and the trainer. Torch-free, so that the API can import it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]


class ConfigModel(BaseModel):
    """Refuses unknown fields by name; field docstrings become the OpenAPI descriptions."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, frozen=True)


class LoraConfig(ConfigModel):
    r: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the adapter's matrices."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale: the update is multiplied by alpha / r (rsLoRA: by alpha / sqrt(r))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Module names to adapt, or `all-linear` for every linear layer but the output head."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """The kind of LoRA: plain, rank-stabilised, or with decomposed weights."""
    plus_ratio: Annotated[float, Field(ge=1, le=64)] | None = None
    """LoRA+: the B matrices learn at this multiple of `learning_rate`; null is off."""


class DeepSpeedConfig(ConfigModel):
    stage: Literal["auto", "none", 1, 2, 3] = "auto"
    """ZeRO stage; `none` trains without DeepSpeed (DDP for several processes). `auto` is the fastest that fits: DDP
    where each GPU holds the frozen base, else ZeRO-3."""
    offload: Literal["none", "auto", "cpu", "nvme"] = "none"
    """Where ZeRO keeps optimizer state (and at stage 3 parameters); `auto` is the CPU where nothing else fits."""
    config: dict[str, Any] | None = None
    """A DeepSpeed JSON of your own; what the run decides itself must agree with it, or be left out, or be "auto"."""


class EarlyStoppingConfig(ConfigModel):
    patience: PositiveInt = 3
    """Validations without a better loss after which training ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """By how much a loss must be lower to be better, in nats per token."""


class SafetyConfig(ConfigModel):
    """Questions that the model is asked while it trains, and rules that its answers are judged by."""

    every_steps: PositiveInt | None = 100
    """Some probes are asked after so many steps, as many as 5 % of the time allows; null: only after the last step,
    when all of them are asked."""
    on_violation: Literal["record", "hold", "stop"] = "record"
    """What open findings do (critical failures, checks that became worse than the base's, what could not be asked).
    `record`: training goes on. `hold`: the run saves a checkpoint and waits for a person. `stop`: it fails."""
    max_new_tokens: Annotated[int, Field(ge=16, le=2048)] = 256
    """Longest answer, in tokens."""


class AcceptedFinding(ConfigModel):
    """A finding that a person looked at and answers for: it ends no run."""

    probe_id: Annotated[str, Field(max_length=80)]
    """Empty for findings about all answers or a whole round."""
    check: Annotated[str, Field(pattern=r"^(MS\d\d|not_checked)$")]


class TrainingConfig(ConfigModel):
    method: Literal["sft"] = "sft"
    """Supervised fine-tuning."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 3
    """Passes over the training rows; `max_steps` wins when both are given."""
    max_steps: PositiveInt | None = None
    """Optimizer steps to train for."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps over which the rate climbs from 0 to its peak."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """Optimizer of the adapter's weights; `adamw_8bit` keeps its state in 8 bits."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random."""
    max_seq_len: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Longest sequence in tokens."""
    truncation: Literal["drop", "truncate", "split", "fail"] = "drop"
    """What happens to a longer row: left out, cut at the end, cut into several rows, or the job fails."""
    packing: bool = True
    """Put several short rows into one sequence, with attention kept inside each row."""
    chat_template: str | None = None
    """A built-in template's name; null takes the model's own, or the documented default."""
    train_on: Literal["assistant", "all"] = "assistant"
    """Tokens that the loss counts: the answers only, or everything."""
    micro_batch_size: Literal["auto"] | PositiveInt = "auto"
    """Sequences per forward pass and process. `auto`: as many as divide the process's share of the global batch, keep
    the device busy, and fit into its memory."""
    global_batch_size: PositiveInt = 16
    """Rows (packed: sequences) per optimizer step over all processes."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of the base model and of the matrix products."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass to save memory; `auto`: only where they do not fit otherwise."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Base weights in 8 bits (LLM.int8) or 4 bits (NF4), by bitsandbytes."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    """DeepSpeed ZeRO."""
    eval_every_steps: PositiveInt = 50
    """Optimizer steps between validation losses; there is always one before the first step and one at the end."""
    save_every_steps: PositiveInt = 50
    """Optimizer steps between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the newest checkpoints stay on disk."""
    early_stopping: EarlyStoppingConfig | None = None
    """End training once the validation loss stops falling; null never does. The adapter is then the best one."""
