"""README.md: the model card of an adapter, all of it rendered from AdapterFacts. Torch-free.

Its front matter is YAML whose values are JSON, as the Hugging Face Hub reads it; `medtune` in it holds what `verify`
compares with the files.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from trainer_core.adapters.facts import AdapterFacts, HeldoutFacts, SafetySummary
from trainer_core.adapters.manifest import CARD_FILE
from trainer_core.errors import VerificationError

NO_SAFETY_CHECK = "**No safety check was run on this adapter.** Nothing is known of how it answers dangerous questions."

_INTENDED_USE = """\
For research and engineering, by people who evaluate it for their own purpose. It is no medical device. It is not fit
for patients, for diagnosis, for treatment or for triage, and no regulator has seen it.
"""
_LIMITS = """\
- It knows what its base knows, and whatever its training rows taught it, their errors included. It invents facts.
- The checks below prove that the adapter is one, that it belongs to its base and that it changes its answers. They do
  not prove that its answers are right.
- The held-out rows come from the same source as the training rows: the loss on other texts is not known.
- It may repeat what stands in its training rows. Whoever may not read the rows should not be given the adapter.
"""


def render_card(facts: AdapterFacts) -> str:
    sections = {
        "Intended use": _INTENDED_USE,
        "Limits": _LIMITS,
        "Base model": _render_base(facts),
        "Data": _render_data(facts),
        "Training": _render_training(facts),
        "Loss": _render_losses(facts),
        "Held-out rows": _render_heldout(facts.verification.heldout),
        "Verification": _render_checks(facts),
        "Safety": _render_safety(facts.safety),
        "Serving": _render_serving(facts),
        "Made with": _render_environment(facts),
    }
    title = f"# LoRA adapter of {facts.base.id}, {facts.job}"
    body = "\n\n".join(f"## {name}\n\n{text.strip()}" for name, text in sections.items())
    return f"{_render_front_matter(facts)}\n{title}\n\n{body}\n"


def read_front_matter(card: str) -> dict[str, Any]:
    """Raises VerificationError."""
    try:
        start, front, _ = card.split("---\n", 2)
        pairs = (line.split(": ", 1) for line in front.splitlines())
        fields = {name: json.loads(value) for name, value in pairs}
    except ValueError:
        start, fields = "?", {}
    if start or not isinstance(fields.get("medtune"), dict):
        raise VerificationError("card_invalid", f"{CARD_FILE} has no front matter of medtune's.")
    return fields


def _render_front_matter(facts: AdapterFacts) -> str:
    fields = {
        "library_name": "peft",
        "base_model": facts.base.id,
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "tags": ["lora", facts.training["method"], "medical", "medtune"],
        "medtune": {
            "job": facts.job,
            "base_fingerprint": facts.base.fingerprint,
            "weights_sha256": facts.weights_sha256,
            "datasets": [dataset.sha256 for dataset in facts.datasets],
        },
    }
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items())
    return f"---\n{lines}---\n"


def _render_base(facts: AdapterFacts) -> str:
    rows = [
        ("id", facts.base.id),
        ("revision", facts.base.revision or "none"),
        ("fingerprint", facts.base.fingerprint),
        ("adapter's weights", f"sha256:{facts.weights_sha256}"),
    ]
    if (ancestor := facts.derived_from) is not None:
        origin = " ".join(filter(None, (ancestor.job, ancestor.checkpoint))) or "an adapter of no job"
        rows.append(("derived from", f"{origin}, weights sha256:{ancestor.weights_sha256}"))
    note = "The fingerprint is over config.json and the start of every tensor. On another base the adapter is noise."
    return f"{_render_table(('', ''), rows)}\n\n{note}"


def _render_data(facts: AdapterFacts) -> str:
    rows = [(d.role, d.id, f"{d.rows:,}", f"{d.bytes:,}", d.sha256) for d in facts.datasets]
    table = _render_table(("role", "dataset", "rows", "bytes", "sha256 of the file"), rows)
    if facts.derived_from is not None:
        table += "\n\nIt also learned from the rows of the adapter that it is derived from."
    if facts.heldout_fraction is None:
        return table
    return f"{table}\n\nOf the training rows, {facts.heldout_fraction:.1%} were held out for validation."


def _render_training(facts: AdapterFacts) -> str:
    plan = facts.plan.model_dump(exclude={"changes"})
    plan["device"] = facts.environment.device
    settings = _render_table(("setting", "value"), [(name, _show(value)) for name, value in facts.training.items()])
    engine = _render_table(("engine and hardware", "value"), [(name, _show(value)) for name, value in plan.items()])
    changes = "".join(f"\n- The plan changed on the way: {change}" for change in facts.plan.changes)
    return f"{settings}\n\n{engine}\n{changes}"


def _render_losses(facts: AdapterFacts) -> str:
    rows = [(str(p.step), _show_loss(p.loss), _show_loss(p.eval_loss)) for p in facts.losses]
    return "In nats per supervised token.\n\n" + _render_table(("step", "training loss", "validation loss"), rows)


def _render_heldout(heldout: HeldoutFacts | None) -> str:
    if heldout is None:
        return "**No rows were held out**: whether the adapter improves on its base was not measured."
    interval = "too few rows" if heldout.ci95 is None else f"{heldout.ci95[0]:.4f} to {heldout.ci95[1]:.4f}"
    rows = [
        ("rows, supervised tokens", f"{heldout.rows:,}, {heldout.tokens:,}"),
        ("loss of the base", _show_loss(heldout.base_loss)),
        ("loss with the adapter", _show_loss(heldout.adapter_loss)),
        ("mean difference of a row", f"{heldout.mean_row_difference:.4f}"),
        ("95 % interval of that mean", interval),
    ]
    return "Measured in a fresh process after training; below zero is better.\n\n" + _render_table(("", ""), rows)


def _render_checks(facts: AdapterFacts) -> str:
    rows = [(str(check["name"]), "passed" if check["ok"] else "failed") for check in facts.verification.checks]
    return _render_table(("check", "result"), rows)


def _render_safety(safety: SafetySummary | None) -> str:
    if safety is None:
        return NO_SAFETY_CHECK
    rows = []
    for row in safety.rows:
        base = (
            "not measured"
            if row.base_failures is None
            else f"{row.base_failures} of {row.prompts if row.base_prompts is None else row.base_prompts}"
        )
        interval = "none" if row.ci95 is None else f"{row.ci95[0]:.1%} to {row.ci95[1]:.1%}"
        rows.append((row.check, base, f"{row.adapter_failures} of {row.prompts}", interval))
    header = ("check", "failures of the base", "with the adapter", "95 % interval of the adapter's rate")
    return f"Rule set {safety.rule_set}.\n\n{_render_table(header, rows)}"


def _render_serving(facts: AdapterFacts) -> str:
    vllm = facts.verification.serving["vllm"]
    template = "Prompts need `chat_template.jinja` from this folder: the adapter learned answers in that form."
    stop = f"Answers end with the token `{facts.stop_token}`."
    if not vllm["loads"]:
        refusal = f"vLLM refuses this adapter because of: {', '.join(vllm['refused_for'])}. Load it with peft."
        return f"{refusal}\n\n{template} {stop}"
    flags = " ".join(vllm["flags"])
    command = f"vllm serve BASE {flags} --lora-modules NAME=ADAPTER_DIR --chat-template ADAPTER_DIR/chat_template.jinja"
    return f"```sh\n{command}\n```\n\n{template} {stop}"


def _render_environment(facts: AdapterFacts) -> str:
    environment = facts.environment
    rows = [("python", environment.python), *environment.packages.items()]
    rows.append(("sha256 of the trainer's source", environment.code_sha256))
    made = f"By job {facts.job}, attempt {facts.attempt}, finished {facts.created_at.isoformat()}."
    return f"{made}\n\n{_render_table(('package', 'version'), rows)}"


def _render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _show_loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"
