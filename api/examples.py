"""Examples of requests, answers and errors, for the description of the API."""

import json
from pathlib import Path
from typing import Any

_ANSWERS = Path(__file__).with_name("answer_examples.json")
"""By the name of the schema, or by method and path where an answer has none: what a service said, with its ids, names,
secrets and machines changed."""

_ID = "01JD0Q3K7M8V6Y2C5W9X4ZT1RA"

EXAMPLES: dict[str, dict[str, Any]] = {
    "Attestation": {
        "attested_by": "Ann Roe",
        "attestation": "The names that were found are those of made-up people in teaching cases.",
    },
    "CompleteBody": {"part_ids": [f"part_{_ID}", "part_01JD0Q3K7M8V6Y2C5W9X4ZT1RB"]},
    "DecisionBody": {"reviewer": "Ann Roe", "reason": "I read every finding: both answers name the emergency number."},
    "JobBody": {
        "model": "tiny-llama",
        "training_file": f"file-{_ID}",
        "suffix": "cardiology",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        "medtune": {"training": {"quantization": "4bit"}},
    },
    "KeyCreate": {"name": "nightly runs", "scopes": ["jobs:read", "jobs:write"], "max_running": 2},
    "KeyRotate": {"overlap_seconds": 3600},
    "RowQuery": {"row": {"instruction": "What is fever?", "response": "A raised temperature."}},
    "UploadBody": {
        "bytes": 1048576,
        "filename": "rows.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "fine-tune",
    },
    "WebhookCreate": {"url": "https://hooks.hospital.example/medtune", "jobs": "all"},
    "ErrorResponse": {
        "error": {
            "message": "training.learning_rat: Extra inputs are not permitted",
            "type": "invalid_request_error",
            "param": "training.learning_rat",
            "code": "unknown_field",
            "details": {},
        }
    },
}
"""By the name of the schema."""


def add_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, example in EXAMPLES.items():
        schemas[name]["examples"] = [example]
    for name, example in json.loads(_ANSWERS.read_text(encoding="utf-8")).items():
        method, _, path = name.partition(" ")
        if path:
            answers = document["paths"][path][method]["responses"]
            next(answers[code] for code in answers if code < "3")["content"]["application/json"]["example"] = example
        else:
            schemas[name]["examples"] = [example]
