"""What vLLM needs or refuses is told from an adapter's configuration."""

from typing import Any

import pytest

from trainer_core.adapters.serving import describe_serving


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ({"r": 4}, ["--enable-lora"]),
        ({"r": 16}, ["--enable-lora"]),
        ({"r": 17}, ["--enable-lora", "--max-lora-rank 32"]),
        ({"r": 300}, ["--enable-lora", "--max-lora-rank 320"]),
        ({"r": 512, "use_rslora": True}, ["--enable-lora", "--max-lora-rank 512"]),
    ],
)
def test_a_plain_adapter_loads_with_a_rank_that_the_server_knows(config: dict[str, Any], flags: list[str]) -> None:
    assert describe_serving(config) == {"vllm": {"loads": True, "flags": flags, "refused_for": []}}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"r": 513}, "a rank above 512"),
    ],
)
def test_what_the_server_refuses_is_listed(config: dict[str, Any], reason: str) -> None:
    vllm = describe_serving({"r": 8} | config)["vllm"]

    assert (vllm["loads"], vllm["refused_for"]) == (False, [reason])
