"""`merge` writes base and adapter as one model that answers as both do together, and only for a verified adapter."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.conftest import TrainedRun
from trainer_core.adapters.merge import merge
from trainer_core.adapters.verify import verify
from trainer_core.demo_model import build_demo_model
from trainer_core.errors import TrainerError
from trainer_core.reporting import Reporter
from trainer_core.run_dir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def copy_verified(trained_run: TrainedRun, tmp_path: Path) -> Callable[..., RunDir]:
    """A copy of a trained run with its verification."""

    def copy(**training: object) -> RunDir:
        run_dir = RunDir(tmp_path / "run")
        shutil.copytree(trained_run(training=training).path, run_dir.path)
        with contextlib.closing(Reporter(run_dir.events)) as reporter:
            verify(run_dir, reporter)
        return run_dir

    return copy


@pytest.fixture
def run_dir(copy_verified: Callable[..., RunDir]) -> RunDir:
    return copy_verified(quantization="none")


@torch.no_grad()
def compute_logits(model: torch.nn.Module, prompt: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(prompt).logits.float()
    return logits


def test_the_merged_model_answers_as_base_and_adapter_do(run_dir: RunDir, demo_model: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "trainer_core", "merge", str(run_dir.path), str(tmp_path / "new" / "merged")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr

    prompt = torch.arange(1, 60)[None]
    base = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.bfloat16)
    before = compute_logits(base, prompt)
    together = compute_logits(PeftModel.from_pretrained(base, run_dir.adapter), prompt)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "merged")
    assert merged.dtype == torch.bfloat16
    difference = compute_logits(merged, prompt) - together
    change = (together - before).pow(2).mean().sqrt()
    # A sum in bfloat16 has 8 bits: its error is small beside the logits, and beside what the adapter does.
    assert difference.pow(2).mean().sqrt() < 0.01 * together.pow(2).mean().sqrt()
    assert difference.pow(2).mean().sqrt() < 0.1 * change


def test_a_merged_model_is_a_whole_model_folder(run_dir: RunDir, tmp_path: Path) -> None:
    merge(run_dir, tmp_path / "merged")

    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.startswith(("adapter", ".")) for name in names)
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()
    tokenizer, trained = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "merged", run_dir.adapter))
    messages = [{"role": "user", "content": "What is fever?"}]
    assert tokenizer.apply_chat_template(messages) == trained.apply_chat_template(messages)


def test_a_quantised_run_is_merged_into_the_plain_base_with_a_warning(
    copy_verified: Callable[..., RunDir], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = copy_verified(quantization="4bit")

    with caplog.at_level(logging.WARNING, logger="trainer_core"):
        merge(run_dir, tmp_path / "merged")

    assert "4bit" in caplog.text
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


def forget_the_verification(run_dir: RunDir) -> None:
    run_dir.verification.unlink()


def fail_the_verification(run_dir: RunDir) -> None:
    run_dir.verification.write_text(json.dumps(json.loads(run_dir.verification.read_text()) | {"ok": False}))


def change_the_weights(run_dir: RunDir) -> None:
    with (run_dir.adapter / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")


def take_another_base(run_dir: RunDir) -> None:
    spec = run_dir.load_spec()
    other = run_dir.path.parent / "other"
    build_demo_model(other, data=Path(spec.train_path), seed=1)
    model = spec.model.model_copy(update={"source": str(other)})
    run_dir.spec.write_text(spec.model_copy(update={"model": model}).model_dump_json(), encoding="utf-8")


def make_the_folder(run_dir: RunDir) -> None:
    (run_dir.path.parent / "merged").mkdir()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (forget_the_verification, "not_verified"),
        (fail_the_verification, "not_verified"),
        (change_the_weights, "not_verified"),
        (take_another_base, "artifact_invalid"),
        (make_the_folder, "output_exists"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    run_dir: RunDir, tmp_path: Path, change: Callable[[RunDir], None], code: str
) -> None:
    change(run_dir)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(TrainerError) as caught:
        merge(run_dir, tmp_path / "merged")

    assert caught.value.code == code
    assert sorted(tmp_path.rglob("*")) == before
