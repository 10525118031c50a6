"""A job with a validation dataset is evaluated on exactly its rows: the loss is computed by hand here."""

import json
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.processes import Supervisor
from cli.serve import Service, find_free_port, start_service
from jobs.settings import Settings
from tests.conftest import Servers, create_database
from tests.factories import read_all, wait_for_status, write_rows
from tests.plain_client import Client

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TRAINED = [{"instruction": f"What is {n} plus {n}?", "response": f"It is {2 * n}."} for n in range(12)]
HELD_OUT = [
    {"instruction": f"Which dose of aspirin did study {n} give?", "response": f"Study {n} gave {75 * n} mg once a day."}
    for n in range(1, 6)
]


@pytest.fixture
def real(servers: Servers, tmp_path: Path) -> Iterator[Service]:
    settings = Settings(
        home=tmp_path,
        port=find_free_port("127.0.0.1"),
        database_url=create_database(servers.postgres_url, servers.template),
        redis_url=servers.redis_url + secrets.choice("123456789"),
    )
    with Supervisor(tmp_path / "logs") as supervisor:
        yield start_service(supervisor, settings)


@torch.no_grad()
def compute_loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Mean negative log-likelihood of the answers' tokens, with the token that ends each; one row after another."""
    total, count = 0.0, 0
    for row in rows:
        question = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        answered = [*question, {"role": "assistant", "content": row["response"]}]
        text = tokenizer.apply_chat_template(answered, tokenize=False).rstrip()
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = torch.tensor([encoded["input_ids"]])
        log_likelihoods = model(tokens).logits[0, :-1].float().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        is_answer = torch.tensor([start >= len(prompt) for start, _ in encoded["offset_mapping"]][1:])
        total -= float(log_likelihoods[is_answer].sum())
        count += int(is_answer.sum())
    return total / count


def test_the_evaluation_runs_over_exactly_the_named_dataset(real: Service, tmp_path: Path) -> None:
    client = Client(real.url, real.key)
    trained, held_out = (
        client.wait_for_dataset(client.upload(write_rows(tmp_path / name, rows))["id"])["id"]
        for name, rows in (("trained.jsonl", TRAINED), ("held-out.jsonl", HELD_OUT))
    )
    training = {"max_steps": 3, "learning_rate": 5e-3, "max_seq_len": 256, "precision": "fp32", "packing": False}
    request = {"model": "tiny-llama", "dataset": {"id": trained}, "validation": {"id": held_out}, "safety": None}

    job_id = client.post("/jobs", {**request, "training": training})["id"]
    job = wait_for_status(client, job_id, "succeeded", "failed", seconds=400)

    assert job["status"] == "succeeded", job["reason"]
    started = [e["data"] for e in read_all(client, f"/jobs/{job_id}/events") if "validation_sequences" in json.dumps(e)]
    (details,) = (data.get("details", data) for data in started)
    assert (details["sequences"], details["validation_sequences"]) == (len(TRAINED), len(HELD_OUT))
    metrics = read_all(client, f"/jobs/{job_id}/metrics")
    losses = [metric["values"]["eval_loss"] for metric in metrics if "eval_loss" in metric["values"]]
    base = AutoModelForCausalLM.from_pretrained(real.settings.home / "models" / "tiny-llama", dtype=torch.float32)
    client.download_adapter(job_id, tmp_path / "adapter.tar.gz")
    with tarfile.open(tmp_path / "adapter.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    before = compute_loss(base, tokenizer, HELD_OUT)
    after = compute_loss(PeftModel.from_pretrained(base, tmp_path / "adapter"), tokenizer, HELD_OUT)
    assert losses[0] == pytest.approx(before, rel=1e-4)
    assert losses[-1] == pytest.approx(after, rel=1e-4)
    assert abs(after - before) > 100e-4 * before  # What it has learned can be told from chance.

    made = client.get(f"/jobs/{job_id}/provenance")["provenance"]["datasets"]
    assert [(one["id"], one["role"], one["rows"]) for one in made] == [
        (trained, "training", len(TRAINED)),
        (held_out, "validation", len(HELD_OUT)),
    ]
    (found,) = client.post("/lineage/rows", {"row": HELD_OUT[0]})["jobs"]
    assert (found["id"], found["roles"]) == (job_id, {held_out: "validation"})
    client.close()
