"""Training speed and memory on one GPU, without internet. Run: python -m bench.gpu [--models 1b 8b].

Llamas of random weights in the shapes of Llama-3.2-1B and Llama-3.1-8B, LoRA r16 on all linear layers, sequences of
4,096 tokens packed from rows of 64 to 2,048, every token but a row's first counted. Model, loss, attention, optimizer
and plan are the trainer's own. Figures for each model and method (`8b_bf16_...`, `8b_nf4_...`, and `8b_trl_...` where
TRL is installed):

- `tokens_per_second`, and `mfu` by 4 operations per weight and token.
- `peak_gib`: what the card has in use at the end, CUDA's context included; no one else may use it meanwhile.
- `predicted_over_measured`: the planner's peak over that.

`--tiny` runs all of it in seconds with toy models, on the CPU if need be, and writes no result.
"""

import argparse
import dataclasses
import gc
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench.report import write_result
from trainer_core.config import TrainingConfig
from trainer_core.data.batches import Batch, Row, build_batch
from trainer_core.demo_model import build_demo_model
from trainer_core.loss import choose_layout, compute_sequence_nll
from trainer_core.model import add_lora, load_base_model
from trainer_core.optimizer import build_optimizer
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.model_facts import load_model_facts
from trainer_core.planning.plan import Plan, plan_training
from trainer_core.run_dir import ModelSource
from trainer_core.throughput import compute_mfu

SAMPLE = Path(__file__).parent.parent / "examples" / "medical_qa.jsonl"
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
}
METHODS = {"bf16": "none", "nf4": "4bit"}
WARM_UP_STEPS = 1


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is the same for all methods on a model."""

    folder: Path
    """The model's."""
    device: torch.device
    length: int
    """Tokens in a sequence."""
    num_steps: int


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """The figures, which are also printed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["1b", "8b"], default=["1b", "8b"])
    parser.add_argument("--tiny", action="store_true", help="toy models: shows that everything runs")
    parsed = parser.parse_args(arguments)
    if not (parsed.tiny or torch.cuda.is_available()):
        parser.error("no CUDA device; --tiny runs without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, float] = {}
    for name in ["tiny"] if parsed.tiny else parsed.models:
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
            setup = Setup(Path(folder), device, *((64, 2) if parsed.tiny else (4096, 8)))
            build_model(name, setup)
            figures |= {f"{name}_{figure}": value for figure, value in measure_model(setup)}
    if not parsed.tiny:
        write_result("gpu", figures)
    return figures


def build_model(name: str, setup: Setup) -> None:
    """A folder as if downloaded. The tokenizer is a small one: no text is read, and the vocabulary is Llama's."""
    build_demo_model(setup.folder, data=SAMPLE)
    config = LlamaConfig(
        vocab_size=4096 if name == "tiny" else 128256,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=None,
        eos_token_id=0,
        **SHAPES[name],
    )
    torch.set_default_dtype(torch.bfloat16)  # float32 weights of 8B would take 32 GB on the way
    with torch.device(setup.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(setup.folder)
    del model
    free_memory()


def measure_model(setup: Setup) -> Iterator[tuple[str, float]]:
    for method, quantization in METHODS.items():
        training = TrainingConfig.model_validate(
            {"quantization": quantization, "max_seq_len": setup.length, "global_batch_size": 8}
        )
        for figure, value in measure_ours(setup, training).items():
            yield f"{method}_{figure}", value
        free_memory()
    if importlib.util.find_spec("trl"):
        yield "trl_tokens_per_second", measure_trl(setup)
        free_memory()


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def measure_ours(setup: Setup, training: TrainingConfig) -> dict[str, float]:
    """Steps as trainer_core.train takes them on one device, by the plan that it would follow."""
    facts, plan = load_model_facts(setup.folder), plan_run(setup, training)
    model = load_base_model(ModelSource(id="model", source=str(setup.folder)), training, setup.device)
    adapter = add_lora(model, training, revision=None, recompute=plan.gradient_checkpointing, float32_adapter=True)
    optimizer = build_optimizer(training, adapter)
    choose_layout(adapter, setup.device, packing=True)
    adapter.train()
    speeds = []
    for step in range(setup.num_steps):
        batches = [batch.to(setup.device) for batch in draw_step(setup.length, plan, seed=step)]
        started = time.perf_counter()
        train_step(adapter, optimizer, batches)
        synchronize(setup.device)
        speeds.append(sum(batch.input_ids.numel() for batch in batches) / (time.perf_counter() - started))
    speed = statistics.median(speeds[WARM_UP_STEPS:])
    figures = {"tokens_per_second": speed, "micro_batch_size": plan.micro_batch_size}
    if mfu := compute_mfu(facts.num_weights, speed, setup.device):
        figures["mfu"] = mfu
    if setup.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(setup.device)
        figures["peak_gib"] = (total - free) / 2**30
        assert plan.memory is not None
        figures["predicted_over_measured"] = plan.memory.peak / (total - free)
    return figures


def plan_run(setup: Setup, training: TrainingConfig) -> Plan:
    is_cuda = setup.device.type == "cuda"
    memory = torch.cuda.get_device_properties(setup.device).total_memory if is_cuda else None
    return plan_training(
        training,
        num_processes=1,
        gpus=int(is_cuda),
        longest_sequence=setup.length,
        facts=load_model_facts(setup.folder),
        hardware=Hardware(gpu_memory_bytes=memory),
    )


def draw_step(length: int, plan: Plan, *, seed: int) -> list[Batch]:
    """Micro-batches of sequences that rows of random tokens fill to the last place."""
    generator = np.random.default_rng(seed)
    sequences = [draw_sequence(length, generator) for _ in range(plan.micro_batch_size * plan.accumulation)]
    size = plan.micro_batch_size
    return [build_batch(sequences[first : first + size]) for first in range(0, len(sequences), size)]


def draw_sequence(length: int, generator: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    room = length
    while room:
        num_tokens = min(room, int(generator.integers(min(64, length // 4), length // 2 + 1)))
        mask = np.ones(num_tokens, dtype=np.uint8)
        mask[0] = 0
        rows.append((generator.integers(0, 2048, num_tokens, dtype=np.int32), mask))
        room -= num_tokens
    return rows


def train_step(adapter: Any, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    num_supervised = sum(len(batch.targets) for batch in batches)
    for batch in batches:
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):
            loss = compute_sequence_nll(adapter, batch).sum() / num_supervised
        torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_trl(setup: Setup) -> float:
    """SFTTrainer on such rows, packed, in bf16, with the attention it does best on this machine."""
    from datasets import Dataset  # TRL brings it; neither is needed for the rest
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from bench.peers import ALL_LINEAR, Clock

    plan = plan_run(setup, TrainingConfig(max_seq_len=setup.length, global_batch_size=8))
    generator = np.random.default_rng(0)
    num_sequences = 8 * setup.num_steps
    rows = [row for _ in range(num_sequences) for row, _ in draw_sequence(setup.length, generator)]
    arguments = SFTConfig(
        output_dir=str(setup.folder / "trl"),
        max_steps=setup.num_steps,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        max_length=setup.length,
        packing=True,
        gradient_checkpointing=plan.gradient_checkpointing,
        bf16=True,
        use_cpu=setup.device.type == "cpu",
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
    model: Any = AutoModelForCausalLM.from_pretrained(setup.folder, dtype=torch.bfloat16, attn_implementation=attention)
    trainer = SFTTrainer(
        model.to(setup.device),
        arguments,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(setup.folder),
        peft_config=ALL_LINEAR,
    )
    clock = Clock(trainer.data_collator)
    trainer.data_collator = clock
    trainer.add_callback(clock)
    trainer.train()
    return clock.compute_speed(plan.accumulation)["tokens_per_second"]


if __name__ == "__main__":
    main()
