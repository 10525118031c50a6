"""What is known of a base model, whether it can be trained, how, and in how much memory: from its files alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.model_digest import compute_digest
from jobs.model_registry import find_problems
from jobs.models_file import ModelEntry
from trainer_core.config import TrainingConfig
from trainer_core.errors import TrainerError
from trainer_core.model_files import load_json_object
from trainer_core.planning.fitting import Case, iter_choices
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.model_facts import ModelFacts, load_model_facts
from trainer_core.planning.plan import plan_training

_USUAL_CARDS = (8, 16, 24, 48, 80)
"""GiB of memory that many GPUs have."""
_GIB = 1 << 30
_CODE_FILES = ("config.json", "tokenizer_config.json")


class Note(BaseModel):
    """A problem, or something to know."""

    code: str
    message: str
    remedy: str


class Card(BaseModel):
    """A GPU, or the host's memory, and what the plan would take of it."""

    name: str
    memory_bytes: int
    peak_bytes: int | None
    """Null: it does not fit."""


class Method(BaseModel):
    """One way to train, with the defaults of a job on one device."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    quantization: str
    least_bytes: int | None
    """With the smallest micro-batch, and activations recomputed; null: it cannot be trained so."""
    refusal: str | None
    cards: list[Card]


class ModelReport(BaseModel):
    id: str
    source: str
    revision: str | None
    trust_remote_code: bool
    trainable: bool
    problems: list[Note]
    notes: list[Note]
    digest: str | None = None
    num_parameters: int | None = None
    bytes_on_disk: int | None = None
    max_positions: int | None = None
    chat_template: str | None = None
    """Where it comes from: `registry`, `model`, or `plain`, the built-in one."""
    methods: list[Method] = []


def build_report(model: ModelEntry, hardware: Hardware) -> ModelReport:
    """`hardware`: the machine's own, beside which usual cards are looked at."""
    problems = [Note(code=p.code, message=p.message, remedy=p.remedy) for p in find_problems(model)]
    report = ModelReport(
        **model.model_dump(include={"id", "source", "revision", "trust_remote_code"}),
        trainable=not problems,
        problems=problems,
        notes=[],
    )
    folder = Path(model.source)
    if not folder.is_absolute():
        missing = "Nothing is known of a hub's model before it is fetched."
        report.problems.append(Note(code="model_not_pulled", message=missing, remedy=f"medtune models pull {model.id}"))
        report.trainable = False
    if not report.trainable:
        return report
    facts = load_model_facts(folder)
    report.digest = compute_digest(folder)
    report.num_parameters, report.bytes_on_disk = facts.num_weights, facts.bytes_on_disk
    report.max_positions = facts.max_positions
    report.chat_template = "registry" if model.chat_template else "model" if _has_template(folder) else "plain"
    report.notes = list(_list_notes(model, folder, report.chat_template))
    report.methods = [_build_method(facts, quantization, hardware) for quantization in ("none", "8bit", "4bit")]
    return report


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(load_json_object(path).get("chat_template"))


def _list_notes(model: ModelEntry, folder: Path, template: str) -> Iterator[Note]:
    if template == "plain":
        yield Note(
            code="no_chat_template",
            message="Neither the model nor the registry has a chat template: the built-in `plain` is used.",
            remedy="Right for a base model; register a chat model with --chat-template, or add its "
            "chat_template.jinja to the folder.",
        )
    files = [folder / name for name in _CODE_FILES if (folder / name).is_file()]
    if any(_names_code(load_json_object(path)) for path in files):
        yield Note(
            code="model_names_code",
            message="Its configuration names Python code of its own (auto_map), which the operator "
            + ("trusts: it runs on the workers." if model.trust_remote_code else "did not trust: it never runs."),
            remedy=""
            if model.trust_remote_code
            else "It trains where transformers knows its model_type by itself; else "
            "read that code, then register it with --trust-remote-code.",
        )
    if not (folder / "tokenizer.json").is_file():
        yield Note(
            code="no_fast_tokenizer",
            message="There is no tokenizer.json: whether the tokenizer tells which characters a token spells is known "
            "only when it loads.",
            remedy="Add a tokenizer.json; the `tokenizers` library converts most tokenizers.",
        )


def _names_code(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return "auto_map" in value or any(_names_code(inner) for inner in value.values())


def _build_method(facts: ModelFacts, quantization: str, hardware: Hardware) -> Method:
    training = TrainingConfig.model_validate({"quantization": quantization})
    length = min(training.max_seq_len, facts.max_positions or training.max_seq_len)
    training = training.model_copy(update={"max_seq_len": length})
    try:
        plan_training(training, num_processes=1, gpus=1, longest_sequence=length, facts=facts)
    except TrainerError as error:
        return Method(
            name=_name(quantization), quantization=quantization, least_bytes=None, refusal=error.code, cards=[]
        )
    case = Case(training, facts, Hardware(), 1, 1, length)
    peaks = [choice.memory.peak for choice in iter_choices(case) if choice.memory is not None]
    return Method(
        name=_name(quantization),
        quantization=quantization,
        least_bytes=min(peaks),
        refusal=None,
        cards=[
            Card(name=name, memory_bytes=memory, peak_bytes=_find_peak(training, facts, gpus, memory, length))
            for name, gpus, memory in _list_cards(hardware)
        ],
    )


def _name(quantization: str) -> str:
    return "lora" if quantization == "none" else f"lora-{quantization}"


def _list_cards(hardware: Hardware) -> Iterator[tuple[str, int, int]]:
    """Name, GPUs and memory of this machine's devices, then of usual cards."""
    if hardware.gpu_memory_bytes is not None:
        yield f"this machine's {hardware.gpu_name or 'GPU'}", 1, hardware.gpu_memory_bytes
    elif hardware.host_memory_bytes is not None:
        yield "this machine's CPU", 0, hardware.host_memory_bytes
    yield from ((f"{size} GiB card", 1, size * _GIB) for size in _USUAL_CARDS)


def _find_peak(training: TrainingConfig, facts: ModelFacts, gpus: int, memory: int, length: int) -> int | None:
    """Of the plan that a job would get; None where nothing fits."""
    hardware = Hardware(gpu_memory_bytes=memory) if gpus else Hardware(host_memory_bytes=memory)
    try:
        plan = plan_training(
            training, num_processes=1, gpus=gpus, longest_sequence=length, facts=facts, hardware=hardware
        )
    except TrainerError:
        return None
    assert plan.memory is not None
    return plan.memory.peak
