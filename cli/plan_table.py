"""A plan as rows of a table for people."""

from typing import Any

Json = dict[str, Any]


def describe_plan(plan: Json) -> list[tuple[str, str]]:
    """Name and value of each row; what is unknown is left out."""
    rows = {
        "model": f"{plan['model']}, {plan['precision']}, quantization {plan['quantization']}",
        "engine": _describe_engine(plan),
        "micro-batches": f"{plan['accumulation']} of {plan['micro_batch_size']}, {plan['micro_batch_tokens']:,} tokens",
        "recompute activations": "yes" if plan["gradient_checkpointing"] else "no",
        "memory per process": _describe_memory(plan["memory"], plan["gpu_memory_bytes"]),
        "host memory": _format_bytes(plan["host_memory_bytes"]),
        "disk": _format_bytes(plan["disk_bytes"]),
        "rows": _format_count(plan["rows"]),
        "steps": _format_count(plan["num_steps"]),
        "tokens": _format_count(plan["num_tokens"]),
        "time": _format_seconds(plan["seconds"]),
    }
    return [(name, value) for name, value in rows.items() if value]


def _describe_engine(plan: Json) -> str:
    device = f"{plan['num_gpus']} x {plan['gpu_name'] or 'GPU'}" if plan["num_gpus"] else "CPU"
    offload = "" if plan["offload"] == "none" else f", offload to the {plan['offload'].upper()}"
    return f"{plan['engine']} on {device}{offload}"


def _describe_memory(memory: Json | None, gpu_memory_bytes: int | None) -> str:
    if memory is None:
        return ""
    names = ("base", "adapter", "activations", "loss", "transient", "overhead")
    parts = ", ".join(f"{name} {_format_bytes(memory[name])}" for name in names)
    card = f" of {_format_bytes(gpu_memory_bytes)}" if gpu_memory_bytes else ""
    return f"{_format_bytes(memory['peak'])}{card} ({parts})"


def _format_bytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"


def _format_count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"about {minutes // 60} h {minutes % 60} min" if minutes else "under a minute"
