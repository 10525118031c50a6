"""The others in bench.trainer, each a process: python -m bench.peers {set-up,raw,trl,naive,score} HOME ...

The last line of standard output is a JSON object.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from bench.trainer import GLOBAL_BATCH_SIZE, LEARNING_RATE, MAX_STEPS
from trainer_core.data.batches import PreparedRows, Sequences
from trainer_core.data.prepare import prepare
from trainer_core.demo_model import build_demo_model
from trainer_core.loss import choose_layout, compute_sequence_nll
from trainer_core.reporting import Reporter
from trainer_core.run_dir import ModelSource, RunDir, RunSpec

SHAPE = {"hidden_size": 384, "num_layers": 8}  # 14.5 million weights, heads of 64 as larger models have them
NUM_ROWS, NUM_HELD_OUT = 1000, 100
RAW_PASSES = 8
NAIVE_STEPS = 2  # of 8 rows padded to 2,048
ALL_LINEAR = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


def main() -> None:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("arguments", nargs="+")
    parsed = parser.parse_args()
    print(json.dumps(_COMMANDS[parsed.command](*parsed.arguments)))


def set_up(home: str, data: str, length: str) -> dict[str, int]:
    """Model, rows to train on that all fit into a sequence, and rows held out."""
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    build_demo_model(Path(home, "model"), data=Path(data), **SHAPE)
    tokenizer = AutoTokenizer.from_pretrained(Path(home, "model"))
    np.random.default_rng(0).shuffle(rows)
    fitting = [row for row in rows if len(tokenizer.encode(to_text(tokenizer, row))) <= int(length)]
    num_held_out = min(NUM_HELD_OUT, len(fitting) // 10)
    parts = {"heldout": fitting[:num_held_out], "train": fitting[num_held_out : num_held_out + NUM_ROWS]}
    for name, part in parts.items():
        lines = [json.dumps({key: row[key] for key in ("instruction", "response")}) for row in part]
        Path(home, f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        prepare_rows(Path(home), name, int(length))
    return {"rows": len(parts["train"])}


def to_text(tokenizer: Any, row: dict[str, str]) -> str:
    return str(tokenizer.apply_chat_template(to_messages(row), tokenize=False))


def to_messages(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]


def prepare_rows(home: Path, name: str, length: int) -> None:
    run_dir = RunDir(home / f"{name}-run")
    model = ModelSource(id="model", source=str(home / "model"))
    training: Any = {"max_seq_len": length}
    run_dir.write_spec(RunSpec(job_id=name, model=model, train_path=str(home / f"{name}.jsonl"), training=training))
    with contextlib.closing(Reporter(run_dir.events)) as reporter:
        prepare(run_dir, reporter)


def load_sequences(home: str, name: str) -> Sequences:
    run_dir = RunDir(Path(home, f"{name}-run"))
    rows = PreparedRows(run_dir.prepared)
    return Sequences(rows, rows.train, max_seq_len=run_dir.load_spec().training.max_seq_len, packing=True)


def measure_raw(home: str, _out: str) -> dict[str, float]:
    """Forward and backward of the packed shapes by transformers and PEFT: one and two sequences a pass, the better."""
    sequences = load_sequences(home, "train")
    model = get_peft_model(load_base(home), ALL_LINEAR)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for index in range(RAW_PASSES + 1):
        for num_sequences, measured in speeds.items():
            input_ids, _ = sequences.collate(list(range(index, index + num_sequences))).pad()
            started = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
            torch.autograd.backward(loss)
            measured.append(input_ids.numel() / (time.perf_counter() - started))
            model.zero_grad()
    return {"tokens_per_second": max(statistics.median(measured[1:]) for measured in speeds.values())}


def load_base(home: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(Path(home, "model"), **{"dtype": torch.bfloat16} | options)


@dataclasses.dataclass
class Clock(TrainerCallback):
    """Tokens and seconds of a Trainer's steps."""

    collate: Callable[[list[Any]], dict[str, Any]]
    num_tokens: list[int] = dataclasses.field(default_factory=list)
    """Of each micro-batch."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of each optimizer step."""
    started: float = 0.0

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """In the place of the trainer's collator."""
        self.num_tokens.append(sum(len(row["input_ids"]) - row.get("num_pads", 0) for row in rows))
        return self.collate(rows)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)

    def compute_speed(self, accumulation: int) -> dict[str, float]:
        """Without the first step."""
        return {
            "tokens_per_second": statistics.mean(self.num_tokens) * accumulation / statistics.median(self.seconds[1:])
        }


def measure_trl(home: str, out: str) -> dict[str, float]:
    """As fast as its settings make it here, with the same schedule, batches and loss on the answers only."""
    lines = Path(home, "train.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [to_messages(json.loads(line)) for line in lines]
    dataset = Dataset.from_list([{"prompt": pair[:1], "completion": pair[1:]} for pair in messages])
    arguments = SFTConfig(
        output_dir=out,
        max_steps=MAX_STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=GLOBAL_BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        warmup_steps=1,
        weight_decay=0.0,
        max_length=RunDir(Path(home, "train-run")).load_spec().training.max_seq_len,
        packing=True,
        packing_strategy="bfd",
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        optim="adamw_torch_fused",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
    )
    tokenizer = AutoTokenizer.from_pretrained(Path(home, "model"))
    model = load_base(home)
    trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=ALL_LINEAR)
    clock = Clock(trainer.data_collator)
    trainer.data_collator = clock
    trainer.add_callback(clock)
    trainer.train()
    trainer.save_model(out)
    return clock.compute_speed(arguments.gradient_accumulation_steps)


def measure_naive(home: str, out: str) -> dict[str, float]:
    """An 8-bit base, every row padded to 2,048, pads and prompts trained on, one row a pass.

    Its half precision is float32 here: the Trainer has no fp16 on the CPU.
    """
    tokenizer = AutoTokenizer.from_pretrained(Path(home, "model"))
    lines = Path(home, "train.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    texts = [f"{row['instruction']}\n{row['response']}" for row in map(json.loads, lines)]
    encoded = tokenizer(texts, truncation=True, padding="max_length", max_length=2048)
    dataset = Dataset.from_list(
        [
            {"input_ids": ids, "attention_mask": mask, "labels": ids, "num_pads": len(mask) - sum(mask)}
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
    )
    model = load_base(home, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32)  # type: ignore[no-untyped-call]
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=128, lora_dropout=0.05, target_modules=targets)
    arguments = TrainingArguments(
        output_dir=out,
        max_steps=NAIVE_STEPS + 1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        learning_rate=2e-4,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = Clock(stack)
    trainer = Trainer(
        get_peft_model(model, lora), arguments, train_dataset=dataset, data_collator=clock, callbacks=[clock]
    )
    trainer.train()
    return clock.compute_speed(arguments.gradient_accumulation_steps)


def stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "attention_mask", "labels")}


@torch.no_grad()
def score(home: str, adapter: str) -> dict[str, float]:
    """Loss per answer token on the rows held out, in float32."""
    model = PeftModel.from_pretrained(load_base(home, dtype=torch.float32), adapter)
    choose_layout(model, torch.device("cpu"), packing=True)
    sequences = load_sequences(home, "heldout")
    nll = sum(float(compute_sequence_nll(model, sequences.collate([index]))) for index in range(len(sequences)))
    return {"heldout_loss": nll / float(sequences.supervised.sum())}


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "set-up": set_up,
    "raw": measure_raw,
    "trl": measure_trl,
    "naive": measure_naive,
    "score": score,
}

if __name__ == "__main__":
    main()
