"""What a job would take, told from its request, its dataset's statistics and the workers that live."""

import time
from dataclasses import dataclass
from math import ceil, inf, sqrt
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from jobs.errors import InvalidRequest
from jobs.model_registry import get_model
from jobs.settings import Settings
from jobs.spec import JobSpec
from trainer_core.errors import ModelError, TrainerError
from trainer_core.planning.hardware import Hardware
from trainer_core.planning.model_facts import ModelFacts, load_model_facts
from trainer_core.planning.plan import Plan, Workload, plan_training

_CHARACTERS_PER_TOKEN = 4
"""Of English text with vocabularies of 32k and more, as tokenizers' makers say; others take more tokens."""
_TEMPLATE_TOKENS = 20
"""What a chat template adds to a row."""
_LARGE_SCALE = 8
_KEPT_SECONDS = 1.0
"""A look at a model's files is dozens of system calls, and after each of them a thread waits for its turn again: with a
look for every submission the API took half as many of them."""
_kept_facts: dict[tuple[Path | None, Path | None, str], tuple[float, ModelFacts | None]] = {}
"""When they were read, and what was; of models that exist, so that there are no more of them."""


@dataclass(frozen=True)
class Estimate:
    """Of a dataset's rows, from their characters."""

    num_rows: int
    num_tokens: int
    longest_row: int
    lengths: dict[int, int]
    """Rows by tokens, as `RowStatistics.lengths` has them by characters; empty for reports of older versions."""

    def count_longer(self, num_tokens: int) -> int:
        """Rows that may be longer, among them some that are a fifth shorter."""
        return sum(rows for limit, rows in self.lengths.items() if min(limit, self.longest_row) > num_tokens)


@dataclass(frozen=True)
class JobPlan:
    plan: Plan
    num_gpus: int
    hardware: Hardware
    estimate: Estimate | None
    warnings: dict[str, str]
    """Messages by code."""


def get_model_facts(settings: Settings, name: str) -> ModelFacts | None:
    """Of a model that can be trained; None for a hub's that was not fetched. Raises InvalidRequest.

    What is wrong with a model's files shows within a second; what was wrong and is mended, at once.
    """
    key = (settings.models_dir, settings.models_file, name)
    now = time.monotonic()
    read_at, facts = _kept_facts.get(key, (-inf, None))
    if now - read_at < _KEPT_SECONDS:
        return facts
    folder = Path(get_model(settings, name).source)
    try:
        facts = load_model_facts(folder) if folder.is_absolute() else None
    except TrainerError as error:
        raise _translate(error) from error
    _kept_facts[key] = (now, facts)
    return facts


def plan_job(
    spec: JobSpec, facts: ModelFacts | None, submission: Row[Any], tokens_per_second: float | None = None
) -> JobPlan:
    """`submission` is a row of `repository.get_submission_facts`. Raises InvalidRequest with the field and a remedy."""
    estimate = _estimate_rows(submission)
    num_gpus: int = submission.num_gpus
    hardware = Hardware(
        gpu_name=submission.gpu_name,
        gpu_memory_bytes=submission.gpu_memory_bytes,
        host_memory_bytes=submission.host_memory_bytes,
        disk_free_bytes=submission.disk_free_bytes,
    )
    try:
        plan = plan_training(
            spec.training,
            num_processes=num_gpus or spec.resources.cpus or 1,
            gpus=num_gpus,
            longest_sequence=_find_longest_sequence(spec, estimate),
            facts=facts,
            # How long unpacked rows are is known only once they are checked: until then nothing is too large.
            hardware=hardware if estimate or spec.training.packing else Hardware(),
            workload=_build_workload(spec, estimate, tokens_per_second),
        )
    except TrainerError as error:
        raise _translate(error) from error
    warnings = _list_warnings(spec, plan, submission, facts) | _forecast_truncation(spec, estimate)
    return JobPlan(plan, num_gpus, hardware, estimate, warnings)


def _estimate_rows(submission: Row[Any]) -> Estimate | None:
    """None for rows that are not checked yet."""
    num_rows, statistics = submission.dataset_rows, submission.dataset_statistics
    if not num_rows or not statistics:
        return None
    return Estimate(
        num_rows=num_rows,
        num_tokens=ceil(statistics["characters"] / _CHARACTERS_PER_TOKEN) + _TEMPLATE_TOKENS * num_rows,
        longest_row=_estimate_tokens(statistics["longest_row_characters"]),
        lengths={_estimate_tokens(int(limit)): rows for limit, rows in statistics.get("lengths", {}).items()},
    )


def _estimate_tokens(characters: int) -> int:
    """Of one row."""
    return ceil(characters / _CHARACTERS_PER_TOKEN) + _TEMPLATE_TOKENS


def _find_longest_sequence(spec: JobSpec, estimate: Estimate | None) -> int:
    limit = spec.training.max_seq_len
    if estimate is None:
        return limit
    return min(limit, estimate.num_tokens if spec.training.packing else estimate.longest_row)


def _build_workload(spec: JobSpec, estimate: Estimate | None, tokens_per_second: float | None) -> Workload | None:
    if estimate is None:
        return None
    held_out = (spec.validation and spec.validation.fraction) or 0
    num_rows, num_tokens = (ceil(count * (1 - held_out)) for count in (estimate.num_rows, estimate.num_tokens))
    num_sequences = ceil(num_tokens / spec.training.max_seq_len) if spec.training.packing else num_rows
    return Workload(num_sequences, num_tokens, tokens_per_second)


def _forecast_truncation(spec: JobSpec, estimate: Estimate | None) -> dict[str, str]:
    limit = spec.training.max_seq_len
    longer = estimate.count_longer(limit) if estimate else 0
    if estimate is None or not longer:
        return {}
    fate = {"drop": "left out", "truncate": "cut", "split": "cut into several"}[spec.training.truncation]
    message = (
        f"About {longer:,} of {estimate.num_rows:,} rows may be longer than max_seq_len = {limit:,} tokens "
        f"and would be {fate}; the longest has about {estimate.longest_row:,}."
    )
    return {"rows_may_be_too_long": message}


def _translate(error: TrainerError) -> InvalidRequest:
    details = dict(error.details)
    field = details.pop("field", None)
    param = "model" if isinstance(error, ModelError) else f"training.{field}".removesuffix(".training")
    return InvalidRequest(error.code, error.message, param=param, remedy=error.remedy, **details)


def _list_warnings(spec: JobSpec, plan: Plan, submission: Row[Any], facts: ModelFacts | None) -> dict[str, str]:
    training, lora, gpus = spec.training, spec.training.lora, submission.num_gpus
    scale = lora.alpha / (sqrt(lora.r) if lora.variant == "rslora" else lora.r)
    free = submission.disk_free_bytes
    found = {
        "rows_not_checked": submission.dataset_rows is None
        and "The dataset is not checked yet: tokens, steps and time are unknown.",
        "tokens_are_estimated": submission.dataset_rows is not None
        and f"Tokens are estimated at {_CHARACTERS_PER_TOKEN} characters each; the tokenizer decides.",
        "model_shape_unknown": facts is None
        and "Nothing is known of a hub's model before it is fetched: no memory is predicted.",
        "no_worker": (submission.largest_worker is None or submission.largest_worker < gpus)
        and f"No running worker has {gpus} GPUs: the job would wait.",
        "memory_unknown": plan.memory is not None
        and (submission.gpu_memory_bytes if gpus else submission.host_memory_bytes) is None
        and "No running worker says how much memory it has: whether the job fits is unknown.",
        "disk_may_be_full": bool(free and plan.disk_bytes and plan.disk_bytes > free)
        and f"The run folder may take {(plan.disk_bytes or 0) / 1e9:.1f} GB, and {(free or 0) / 1e9:.1f} GB are free.",
        "8bit_is_slow": training.quantization == "8bit"
        and "8bit multiplies in fp16 and is slower than 4bit or none: it pays only where 4bit is too coarse.",
        "8bit_is_not_cut": training.quantization == "8bit"
        and plan.stage == 3
        and "ZeRO-3 does not cut an 8bit base: every GPU holds all of it. 4bit and unquantised bases are cut.",
        "scale_is_large": scale > _LARGE_SCALE
        and f"The adapter's update is multiplied by {scale:.3g}, which acts like a learning rate so much higher.",
    }
    return {code: message for code, message in found.items() if message}
