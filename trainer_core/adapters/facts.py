"""AdapterFacts: what an adapter's card and bill of materials say, collected from the run that made it. Torch-free.

All of it can be checked against bytes: nothing is free text, and nothing names this machine, its folders or its people.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer_core.adapters.environment import Environment
from trainer_core.adapters.manifest import BASE_FILE, ENVIRONMENT_FILE, TOKENIZER_FILE, WEIGHTS_FILE, hash_file
from trainer_core.errors import VerificationError
from trainer_core.run_dir import RunDir

SAFETY_FILE = "safety.json"
"""In the run folder, where a run was checked: a SafetySummary."""

_Text = Field(min_length=1)


class _Facts(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


class BaseModelFacts(_Facts):
    id: str = _Text
    revision: str | None
    fingerprint: str = Field(pattern="^sha256:[0-9a-f]{64}$")
    """trainer_core.adapters.fingerprint."""


class DatasetFacts(_Facts):
    id: str = _Text
    role: Literal["training", "validation"]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the file that was trained on."""
    rows_digest: str | None = None
    """trainer_core.data.row_hashes: does not depend on the rows' order."""
    rows: int = Field(ge=1)
    bytes: int


class AncestorFacts(_Facts):
    """The adapter whose weights this one began with."""

    job: str | None
    checkpoint: str | None
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")


class LossPoint(_Facts):
    step: int
    loss: float | None = None
    eval_loss: float | None = None


class HeldoutFacts(_Facts):
    """As `verify` measured them; losses in nats per supervised token."""

    rows: int
    tokens: int
    base_loss: float
    adapter_loss: float
    mean_row_difference: float
    ci95: tuple[float, float] | None


class VerificationFacts(_Facts):
    ok: Literal[True]
    checks: list[dict[str, Any]] = Field(min_length=1)
    weights_sha256: str
    serving: dict[str, Any]
    heldout: HeldoutFacts | None


class SafetyRow(_Facts):
    check: str = _Text
    prompts: int
    """Answers with the adapter that the check could judge."""
    base_failures: int | None = None
    base_prompts: int | None = None
    """Answers of the base that it could judge, where these are not as many."""
    adapter_failures: int
    ci95: tuple[float, float] | None = None
    """Of the adapter's failure rate."""


class SafetySummary(_Facts):
    """What safety checks found, in the base and with the adapter."""

    rule_set: str = _Text
    rows: list[SafetyRow] = Field(min_length=1)


class PlanFacts(_Facts):
    """How the run used its hardware."""

    engine: str = _Text
    num_processes: int
    gpus: int
    offload: str
    micro_batch_size: int
    accumulation: int
    gradient_checkpointing: bool
    precision: str
    quantization: str
    changes: list[str]
    """What had to change on the way, such as a smaller micro-batch."""


class AdapterFacts(_Facts):
    job: str = _Text
    attempt: int
    created_at: datetime.datetime
    base: BaseModelFacts
    datasets: list[DatasetFacts] = Field(min_length=1)
    derived_from: AncestorFacts | None = None
    """Null: it began as a fresh adapter."""
    heldout_fraction: float | None
    """Of the training rows, where no validation file was given."""
    training: dict[str, Any] = Field(min_length=1)
    """Every hyper-parameter by its dotted name."""
    plan: PlanFacts
    environment: Environment
    losses: list[LossPoint] = Field(min_length=1)
    verification: VerificationFacts
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    stop_token: str = _Text
    safety: SafetySummary | None = None


def collect_facts(run_dir: RunDir, datasets: Sequence[DatasetFacts], losses: Sequence[LossPoint]) -> AdapterFacts:
    """Of a run whose adapter was verified. Raises VerificationError when something mandatory is missing."""
    spec, folder = run_dir.load_spec(), run_dir.adapter
    plan = run_dir.find_plan()
    training = spec.training
    found = {
        "job": spec.job_id,
        "attempt": spec.attempt,
        "created_at": datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        "base": _load_json(folder / BASE_FILE),
        "datasets": list(datasets),
        "derived_from": spec.init_from
        and {
            **spec.init_from.model_dump(exclude={"path"}),
            "weights_sha256": hash_file(run_dir.path / spec.init_from.path / WEIGHTS_FILE),
        },
        "heldout_fraction": spec.validation.fraction,
        "training": _flatten(training.model_dump(mode="json", exclude={"deepspeed": {"config"}}))
        | {"deepspeed.config": _digest_settings(training.deepspeed.config)},
        "plan": plan
        and {
            **plan.model_dump(include=set(PlanFacts.model_fields) - {"changes"}),
            "engine": plan.engine,
            "gpus": spec.gpus,
            "changes": [change.change for change in plan.changes],
        },
        "environment": _load_json(folder / ENVIRONMENT_FILE),
        "losses": list(losses),
        "verification": _load_json(run_dir.verification),
        "weights_sha256": hash_file(folder / WEIGHTS_FILE),
        "stop_token": _find_stop_token(_load_json(folder / TOKENIZER_FILE)),
        "safety": _load_json(run_dir.path / SAFETY_FILE),
    }
    facts = build_facts(found)
    if facts.verification.weights_sha256 != facts.weights_sha256:
        message = "The adapter's weights changed after their verification."
        raise VerificationError("artifact_invalid", message, remedy="Train again; never load this folder.")
    return facts


def build_facts(found: dict[str, Any]) -> AdapterFacts:
    """Raises VerificationError, naming every mandatory field that is missing or wrong."""
    try:
        return AdapterFacts.model_validate(found)
    except ValidationError as error:
        fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)})
        message = f"The adapter's card cannot be written without: {', '.join(fields)}."
        remedy = "The run folder lacks what its trainer should have written; train again."
        raise VerificationError("card_incomplete", message, remedy=remedy, fields=fields) from None


def _load_json(path: Path) -> Any:
    """None when there is none, or none that can be read: the fields that need it are then missing."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _digest_settings(config: dict[str, Any] | None) -> str | None:
    """A DeepSpeed JSON of one's own may name folders: its digest tells it from another."""
    if config is None:
        return None
    return f"sha256:{hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}"


def _find_stop_token(tokenizer: Any) -> str | None:
    token = tokenizer.get("eos_token") if isinstance(tokenizer, dict) else None
    return token.get("content") if isinstance(token, dict) else token
