"""How much memory a training run takes, part by part, from the model's shape. Pure, torch-free.

Where the numbers come from: the tensors that autograd keeps were listed, and the allocator's peaks read, on small
Llamas of several shapes (torch 2.13, transformers 5.23, PEFT 0.21); a test repeats the list. For Llama-3.1-8B it gives
108,544 elements per token and layer with PEFT's own LoRA layers, where 106,677 were published (LoRAFusion, arXiv
2510.00206, its simulator's configuration), and 92,160 with trainer_core.fused_lora; with recomputation 4,096, the
hidden state alone, as published.
"""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer_core.config import TrainingConfig
from trainer_core.planning.model_facts import ModelFacts

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "cpu"]

GB = 10**9

_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales."""
_ZERO3_LIVE_WEIGHTS = 10**9
"""Weights that ZeRO-3 keeps gathered on each GPU: DeepSpeed's `stage3_max_live_parameters` by default."""
_CHUNK_LOGITS = {True: 2**26, False: 2**20}
"""On a GPU and on the CPU: logits that trainer_core.head has at once."""
_LOGIT_BYTES = 2 + 4 + 2
"""Of one: in bf16, as an fp32 probability, and its gradient in bf16."""
_CUDA_CONTEXT = 0.6 * GB
_NCCL_BUFFERS = 0.7 * GB
_PROCESS = 1.0 * GB
"""Of the host's memory, for Python with torch, transformers and PEFT."""
_ALLOCATOR_SLACK = 0.05
"""Share of what comes and goes that the allocator holds beside it."""


class MemoryPrediction(BaseModel):
    """Peak of one process on its GPU, or in the host's memory where it trains on the CPU. All in bytes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base: int
    """The frozen weights, or under ZeRO-3 this process's share and what is gathered."""
    adapter: int
    """The adapter's weights with their gradients and the optimizer's state."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    loss: int
    """The last norm, and the logits of one chunk of tokens."""
    transient: int
    """What a layer's backward pass needs while it runs."""
    overhead: int
    """CUDA's context, the buffers of collectives, and what the allocator holds in reserve."""
    loading: int
    """While the base loads; more than the rest where ZeRO-3 cuts a quantised base only after it has loaded."""
    peak: int


class Engine(BaseModel):
    """What a prediction is for, beside the configuration."""

    model_config = ConfigDict(frozen=True)

    num_processes: int
    on_gpu: bool
    stage: Stage
    offload: Offload
    gradient_checkpointing: bool


def predict_memory(training: TrainingConfig, facts: ModelFacts, engine: Engine, tokens: int) -> MemoryPrediction:
    """`tokens`: in one micro-batch of one process."""
    whole_base = _count_base_bytes(training, facts)
    base = _count_resident_base(whole_base, training, facts, engine)
    adapter, _ = _split_adapter_bytes(training, facts, engine)
    activations = _count_activation_bytes(training, facts, engine) * tokens
    loss = _count_loss_bytes(training, facts, engine, tokens)
    transient = _count_transient_bytes(training, facts) * tokens + _count_weight_copies(training, facts)
    # The logits are gone before the last layer's backward pass begins.
    passing = activations + max(loss, transient)
    overhead = _count_fixed_overhead(engine) + _ALLOCATOR_SLACK * passing
    is_cut_late = engine.stage == 3 and training.quantization != "none"
    loading = (whole_base if is_cut_late else base) + _count_fixed_overhead(engine)
    parts = {
        "base": base,
        "adapter": adapter,
        "activations": activations,
        "loss": loss,
        "transient": transient,
        "overhead": overhead,
        "loading": loading,
        "peak": max(base + adapter + passing + overhead, loading),
    }
    return MemoryPrediction.model_validate({name: math.ceil(value) for name, value in parts.items()})


def predict_host_memory(training: TrainingConfig, facts: ModelFacts, engine: Engine, memory: MemoryPrediction) -> int:
    """Bytes of all processes together, as if all were on one host."""
    if not engine.on_gpu:
        return engine.num_processes * memory.peak
    _, offloaded = _split_adapter_bytes(training, facts, engine)
    is_base_offloaded = engine.offload == "cpu" and engine.stage == 3
    base = _count_base_bytes(training, facts) if is_base_offloaded else 0
    return math.ceil(engine.num_processes * (2 * _PROCESS + offloaded) + base)


def predict_disk(training: TrainingConfig, facts: ModelFacts, num_tokens: int) -> int:
    """Bytes of the run folder: the checkpoints that stay, the best one, one being written, adapter and prepared rows.

    A checkpoint has the adapter and AdamW's state in fp32; a prepared token is an id of 4 bytes and a mask of 1.
    """
    num_weights = facts.count_adapter_weights(training.lora)
    return (training.keep_checkpoints + 2) * 16 * num_weights + 4 * num_weights + 5 * num_tokens


def _count_base_bytes(training: TrainingConfig, facts: ModelFacts) -> float:
    """bitsandbytes quantises the linear layers and leaves embeddings, head and norms in the run's precision."""
    plain = _count_element_bytes(training)
    linear = {"none": float(plain), "8bit": 1.0, "4bit": _NF4_BYTES}[training.quantization]
    return linear * facts.num_linear_weights + plain * (facts.num_weights - facts.num_linear_weights)


def _count_resident_base(whole_base: float, training: TrainingConfig, facts: ModelFacts, engine: Engine) -> float:
    """ZeRO-3 does not cut an 8-bit base: bitsandbytes keeps a second reference to each whole weight."""
    if engine.stage < 3 or training.quantization == "8bit":
        return whole_base
    gathered = min(1.0, max(_ZERO3_LIVE_WEIGHTS, facts.largest_tensor) / facts.num_weights)
    share = 0.0 if engine.offload == "cpu" else 1 / engine.num_processes
    return whole_base * min(1.0, share + gathered)


def _split_adapter_bytes(training: TrainingConfig, facts: ModelFacts, engine: Engine) -> tuple[float, float]:
    """Weights, gradients and optimizer state per process: (on the device, offloaded to the host).

    Plain: 4 + 4 + 8 bytes a weight (8-bit AdamW: 2 for 8), and for DDP its gradient buckets of 4. DeepSpeed: weight and
    gradient in the run's precision, and fp32 weight, gradient and AdamW state, which stage 1 divides among processes;
    stage 2 divides the gradients too.
    """
    num_weights = facts.count_adapter_weights(training.lora)
    if engine.stage == 0:
        state = 2 if training.optimizer == "adamw_8bit" else 8
        buckets = 4 if engine.num_processes > 1 else 0
        return num_weights * (4 + 4 + state + buckets), 0.0
    element = _count_element_bytes(training)
    whole = 2 * element if engine.stage == 1 else element
    divided = (16 if engine.stage == 1 else 16 + element) / engine.num_processes
    if engine.offload == "cpu":
        return num_weights * whole, num_weights * divided
    return num_weights * (whole + divided), 0.0


def _count_activation_bytes(training: TrainingConfig, facts: ModelFacts, engine: Engine) -> float:
    """Per token. With recomputation: every layer's input, and all of one layer."""
    layer = _count_layer_bytes(training, facts, engine)
    if engine.gradient_checkpointing:
        return facts.num_layers * facts.hidden_size * _count_element_bytes(training) + layer
    return facts.num_layers * layer


def _count_layer_bytes(training: TrainingConfig, facts: ModelFacts, engine: Engine) -> float:
    """Per token: what autograd keeps of one layer."""
    hidden, mlp = facts.hidden_size, facts.intermediate_size
    query, key_value = facts.query_width, facts.key_value_width
    element = _count_element_bytes(training)
    norms = 2 * hidden * 4  # both inputs, in fp32
    attention = 2 * query + 2 * key_value  # q, k, v and the output
    if not engine.on_gpu:
        attention = attention * 4 // element + query  # computed in fp32, and the output once more as o's input
    inputs = 2 * hidden + mlp  # of q, k, v together; of gate and up together; of down
    kept: float = norms + element * (attention + inputs + 3 * mlp)  # the MLP: gate, its activation, and up
    if not _is_fused(training):
        kept += _count_unfused_bytes(training, facts, engine)
    return kept


def _count_unfused_bytes(training: TrainingConfig, facts: ModelFacts, engine: Engine) -> float:
    """Per token and layer: what PEFT's own LoRA layers keep beyond the fused ones."""
    hidden, mlp, query = facts.hidden_size, facts.intermediate_size, facts.query_width
    element, kept = _count_element_bytes(training), 0.0
    has_float32_adapter = engine.stage == 0 and training.precision == "bf16"
    if has_float32_adapter or training.lora.dropout > 0:
        kept += element * (3 * hidden + query)  # q, k, v, o, gate and up have a copy of their input each
        if training.quantization == "8bit":
            kept += element * (2 * hidden + mlp)  # bitsandbytes holds the inputs themselves
    if training.lora.dropout > 0:
        kept += 5 * hidden + query + mlp  # masks, 1 byte each
    if training.lora.variant == "dora":
        kept += 2 * element * (query + 2 * facts.key_value_width + 2 * hidden + 2 * mlp)  # both results of each layer
    return kept


def _is_fused(training: TrainingConfig) -> bool:
    """Whether trainer_core.fused_lora does the low-rank path."""
    return training.lora.variant != "dora" and training.lora.dropout == 0


def _count_loss_bytes(training: TrainingConfig, facts: ModelFacts, engine: Engine, tokens: int) -> float:
    logits = min(tokens * facts.vocabulary_size, _CHUNK_LOGITS[engine.on_gpu])
    return _LOGIT_BYTES * logits + 8 * _count_element_bytes(training) * facts.hidden_size * tokens


def _count_transient_bytes(training: TrainingConfig, facts: ModelFacts) -> float:
    """Per token: the gradients alive at once in a layer's backward pass, by the allocator's peak."""
    hidden, mlp = facts.hidden_size, facts.intermediate_size
    return _count_element_bytes(training) * (2 * mlp + 3 * hidden if _is_fused(training) else 3 * mlp + 7 * hidden)


def _count_weight_copies(training: TrainingConfig, facts: ModelFacts) -> float:
    """A quantised layer is dequantised whole for its product; DoRA multiplies out A and B to take a norm."""
    copies = 0 if training.quantization == "none" else 1
    if training.lora.variant == "dora":
        copies += 4
    return copies * facts.largest_linear_layer * _count_element_bytes(training)


def _count_fixed_overhead(engine: Engine) -> float:
    if not engine.on_gpu:
        return _PROCESS
    return _CUDA_CONTEXT + (_NCCL_BUFFERS if engine.num_processes > 1 else 0)


def _count_element_bytes(training: TrainingConfig) -> int:
    return 4 if training.precision == "fp32" else 2
