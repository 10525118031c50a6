"""A folder as people have it who saved what OpenAI's API returned."""

import json
from pathlib import Path
from typing import Any

MODEL = "gpt-4o-mini-2024-07-18"


def write_export(folder: Path) -> Path:
    """Two supervised jobs over the same rows, one by preferences; a list page, single objects, and contents."""
    folder.mkdir()
    rows = write_messages(folder / "file-train1.jsonl", "What is a murmur?")
    held_out = write_messages(folder / "held out.jsonl", "What is a rub?")
    hyperparameters = {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 1.8}
    first = build_job("ftjob-1", hyperparameters, validation_file="file-val1", seed=7, user_provided_suffix="heart")
    second = build_job("ftjob-2", {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"})
    preferences = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
    third = {**build_job("ftjob-3", {}), "method": preferences}
    page = {"object": "list", "data": [first, third], "has_more": False}
    (folder / "jobs.json").write_text(json.dumps(page, indent=2))
    (folder / "more-jobs.jsonl").write_text(json.dumps(second) + "\n")
    files = [build_file("file-train1", "rows.jsonl", rows), build_file("file-val1", held_out.name, held_out)]
    (folder / "files.jsonl").write_text("".join(json.dumps(file) + "\n" for file in files))
    return folder


def write_messages(path: Path, question: str) -> Path:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "A sound."}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    return path


def build_job(job_id: str, hyperparameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job",
        "id": job_id,
        "created_at": 1721764800,
        "finished_at": 1721765800,
        "model": MODEL,
        "fine_tuned_model": None,
        "organization_id": "org-1",
        "status": "succeeded",
        "training_file": "file-train1",
        "validation_file": None,
        "result_files": [],
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "trained_tokens": 12,
        "seed": 42,
        "error": {},
        "metadata": {"team": "cardiology"},
        **fields,
    }


def build_file(file_id: str, filename: str, content: Path) -> dict[str, Any]:
    facts = {"bytes": content.stat().st_size, "created_at": 1721764800, "purpose": "fine-tune", "status": "processed"}
    return {"object": "file", "id": file_id, "filename": filename, **facts}
