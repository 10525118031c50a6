"""What a server that loads adapters beside their base needs, or refuses. Torch-free.

vLLM's rules: the ranks in `vllm/config/lora.py`, the refusals in `vllm/lora/peft_helper.py`.
"""

from typing import Any

_VLLM_MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` takes."""
_VLLM_DEFAULT_MAX_RANK = 16


def describe_serving(config: dict[str, Any]) -> dict[str, Any]:
    """From adapter_config.json: {"vllm": {"loads": bool, "flags": [...], "refused_for": [...]}}.

    rsLoRA and LoRA+ need nothing: vLLM reads `use_rslora` for the scale, and LoRA+ is only a way to train.
    """
    refused_for = []
    if config.get("use_dora"):
        refused_for.append("DoRA")
    if config.get("modules_to_save"):
        refused_for.append("modules_to_save")
    if config.get("bias", "none") != "none":
        refused_for.append("bias")
    flags = ["--enable-lora"]
    sufficient = [rank for rank in _VLLM_MAX_RANKS if rank >= config["r"]]
    if not sufficient:
        refused_for.append(f"a rank above {_VLLM_MAX_RANKS[-1]}")
    elif sufficient[0] > _VLLM_DEFAULT_MAX_RANK:
        flags.append(f"--max-lora-rank {sufficient[0]}")
    return {"vllm": {"loads": not refused_for, "flags": flags, "refused_for": refused_for}}
