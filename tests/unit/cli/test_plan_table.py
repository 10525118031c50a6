"""A plan as people read it."""

from typing import Any

import pytest

from cli.plan_table import describe_plan

GIB = 2**30
PLAN: dict[str, Any] = {
    "model": "llama-3.1-70b",
    "engine": "ZeRO-3",
    "offload": "cpu",
    "precision": "bf16",
    "quantization": "none",
    "num_gpus": 8,
    "gpu_name": "NVIDIA H100",
    "gpu_memory_bytes": 80 * GIB,
    "micro_batch_size": 2,
    "micro_batch_tokens": 8192,
    "accumulation": 4,
    "gradient_checkpointing": True,
    "memory": {
        "base": 18 * GIB,
        "adapter": GIB,
        "activations": 12 * GIB,
        "loss": GIB,
        "transient": GIB,
        "overhead": 2 * GIB,
        "loading": 19 * GIB,
        "peak": 34 * GIB,
    },
    "host_memory_bytes": 147 * GIB,
    "disk_bytes": 3 * GIB,
    "rows": 12345,
    "num_steps": 100,
    "num_tokens": 1_000_000,
    "seconds": 5400.0,
}


def test_everything_that_is_known_has_a_row() -> None:
    rows = dict(describe_plan(PLAN))

    assert rows["engine"] == "ZeRO-3 on 8 x NVIDIA H100, offload to the CPU"
    assert rows["micro-batches"] == "4 of 2, 8,192 tokens"
    assert rows["memory per process"].startswith("34.0 GiB of 80.0 GiB (base 18.0 GiB, adapter 1.0 GiB")
    assert (rows["rows"], rows["tokens"], rows["time"]) == ("12,345", "1,000,000", "about 1 h 30 min")


@pytest.mark.parametrize("name", ["host_memory_bytes", "disk_bytes", "rows", "num_steps", "num_tokens", "seconds"])
def test_what_is_unknown_has_none(name: str) -> None:
    assert len(describe_plan(PLAN | {name: None, "memory": None})) == len(describe_plan(PLAN)) - 2


def test_a_short_run_is_short() -> None:
    assert dict(describe_plan(PLAN | {"seconds": 20.0}))["time"] == "under a minute"
