"""Training speed on the CPU against others. Run: python -m bench.trainer [--data FILE] [--length TOKENS].

A Llama of 15 million random weights, LoRA r16 on all linear layers, bf16, the same rows for all. Each contestant is a
process of its own; they take turns, and every figure is a median over the rounds. Tokens are those of rows, never
padding.

- `tokens_per_second`: of `python -m trainer_core train` in its steps after the first.
- `ours_over_raw`: against forward and backward passes of the same packed shapes, and nothing else (bench.peers).
- `ours_over_trl`, `ours_over_naive`: against TRL's SFTTrainer at its best, and a script as it is often written.
- `heldout_loss_over_trl`: loss per answer token on the same held-out rows after the same steps, ours over TRL's.
- `peak_memory_over_trl`: of the training processes' largest resident sizes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import write_result
from trainer_core.reporting import MetricsEvent, parse_event
from trainer_core.run_dir import RunDir

SAMPLE = Path(__file__).parent.parent / "examples" / "medical_qa.jsonl"
MAX_STEPS, GLOBAL_BATCH_SIZE, LEARNING_RATE = 8, 8, 2e-3
CONTESTANTS = ("ours", "trl", "raw", "naive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SAMPLE, help="rows with an instruction and a response, as JSONL")
    parser.add_argument("--length", type=int, default=1024, help="tokens in a packed sequence")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as folder:
        home = Path(folder)
        run([sys.executable, "-m", "bench.peers", "set-up", str(home), str(arguments.data), str(arguments.length)])
        rounds = [run_round(home / f"round-{index}", home, arguments.length) for index in range(arguments.rounds)]
    suffix = "" if arguments.length == 1024 else f"_{arguments.length}"
    write_result(f"trainer{suffix}", compute_figures(rounds))


Round = dict[str, dict[str, float]]


def run_round(folder: Path, home: Path, length: int) -> Round:
    """Every contestant once: its tokens_per_second, and peak_bytes and heldout_loss where they make sense."""
    folder.mkdir()
    result = {name: measure(name, folder, home, length) for name in CONTESTANTS}
    for name in ("ours", "trl"):
        adapter = folder / ("ours/adapter" if name == "ours" else "trl")
        score = run([sys.executable, "-m", "bench.peers", "score", str(home), str(adapter)])
        result[name] |= json.loads(score.splitlines()[-1])
    print(" ".join(f"{name} {values['tokens_per_second']:,.0f}" for name, values in result.items()), flush=True)
    return result


def measure(name: str, folder: Path, home: Path, length: int) -> dict[str, float]:
    if name == "ours":
        return measure_ours(folder / "ours", home, length)
    output, peak_bytes = run_measured([sys.executable, "-m", "bench.peers", name, str(home), str(folder / name)])
    return {"tokens_per_second": json.loads(output.splitlines()[-1])["tokens_per_second"], "peak_bytes": peak_bytes}


def measure_ours(run_dir: Path, home: Path, length: int) -> dict[str, float]:
    """The product as users start it."""
    trainer = [sys.executable, "-m", "trainer_core"]
    settings = {
        "max_steps": MAX_STEPS,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "max_seq_len": length,
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    spec = [
        "--model",
        str(home / "model"),
        "--data",
        str(home / "train.jsonl"),
        "--training",
        *words,
        "--safety",
        "off",
    ]
    run([*trainer, "spec", str(run_dir), *spec])
    _, peak_bytes = run_measured([*trainer, "train", str(run_dir)])
    events = [parse_event(line) for line in RunDir(run_dir).events.read_bytes().splitlines()]
    speeds = [e.values["tokens_per_second"] for e in events if isinstance(e, MetricsEvent) and e.step > 1]
    return {"tokens_per_second": statistics.median(speeds), "peak_bytes": peak_bytes}


def run(command: list[str]) -> str:
    return run_measured(command)[0]


def run_measured(command: list[str]) -> tuple[str, float]:
    """Standard output, and the largest resident size of the process or one of its children in bytes."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        assert process.returncode == 0, f"{command} failed:\n{errors.read()[-4000:]}"
    return output, usage.ru_maxrss * 1024.0


def compute_figures(rounds: list[Round]) -> dict[str, float]:
    def median(name: str, figure: str) -> float:
        return statistics.median(round_[name][figure] for round_ in rounds)

    def compare(peer: str, figure: str) -> float:
        return statistics.median(round_["ours"][figure] / round_[peer][figure] for round_ in rounds)

    figures = {"tokens_per_second": median("ours", "tokens_per_second")}
    figures |= {f"ours_over_{peer}": compare(peer, "tokens_per_second") for peer in ("raw", "trl", "naive")}
    figures |= {f"{peer}_tokens_per_second": median(peer, "tokens_per_second") for peer in ("raw", "trl", "naive")}
    figures |= {
        "heldout_loss_over_trl": compare("trl", "heldout_loss"),
        "peak_memory_over_trl": compare("trl", "peak_bytes"),
    }
    for name in ("ours", "trl"):
        figures[f"{name}_heldout_loss"] = median(name, "heldout_loss")
        figures[f"{name}_peak_mib"] = median(name, "peak_bytes") / 2**20
    return figures


if __name__ == "__main__":
    main()
