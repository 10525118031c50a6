"""Twelve ways in which an adapter's folder has carried its base, or worse, out of a building; the gate stops each.

The folders are made by PEFT itself wherever it would make such a thing.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trainer_core.adapters.gate import check_adapter_folder
from trainer_core.config import TrainingConfig
from trainer_core.errors import VerificationError
from trainer_core.model import add_lora, load_base_model
from trainer_core.run_dir import ModelSource

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

WEIGHTS = "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.0.mlp.up_proj"

Leak = Callable[[Path, Path], None]
"""Fills the first folder with an adapter of the second, and something more."""


def build(base: Path, **config: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    fields: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"} | config
    return get_peft_model(model, LoraConfig(**fields))


def save(model: Any, folder: Path, **options: Any) -> None:
    """With the base's name instead of its place, as this trainer writes it."""
    model.save_pretrained(str(folder), **options)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "demo"}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def leak_a_resized_vocabulary(folder: Path, base: Path) -> None:
    model = build(base)
    model.get_base_model().resize_token_embeddings(5000, mean_resizing=False)
    save(model, folder, save_embedding_layers=True)


def leak_targeted_embeddings(folder: Path, base: Path) -> None:
    save(build(base, target_modules=["q_proj", "embed_tokens"]), folder)


def leak_modules_to_save(folder: Path, base: Path) -> None:
    save(build(base, modules_to_save=["lm_head"]), folder)


def leak_every_bias(folder: Path, base: Path) -> None:
    save(build(base, bias="all"), folder)


def leak_the_full_state(folder: Path, base: Path) -> None:
    model = build(base)
    save(model, folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def leak_a_merged_model(folder: Path, base: Path) -> None:
    model = build(base)
    save(model, folder)
    model.merge_and_unload().save_pretrained(str(folder))


def leak_a_renamed_tensor(folder: Path, base: Path) -> None:
    """A weight of the base under the name of a LoRA matrix."""
    save(build(base), folder)
    weight = AutoModelForCausalLM.from_pretrained(base).state_dict()["model.layers.0.mlp.up_proj.weight"]
    change_tensors(folder, lambda tensors: tensors.update({f"{LAYER}.lora_A.weight": weight.clone()}))


def leak_by_padding(folder: Path, base: Path) -> None:
    """LoRA matrices in name and shape, of a layer that the base does not have."""
    save(build(base), folder)
    layer = LAYER.replace("layers.0", "layers.99")
    extra = {f"{layer}.lora_A.weight": torch.ones(4, 64), f"{layer}.lora_B.weight": torch.ones(160, 4)}
    change_tensors(folder, lambda tensors: tensors.update(extra))


def leak_a_pickle(folder: Path, base: Path) -> None:
    save(build(base), folder)
    (folder / "training_args.bin").write_bytes(pickle.dumps({"token": "secret"}))


def leak_through_a_link(folder: Path, base: Path) -> None:
    save(build(base), folder)
    (folder / "tokenizer.json").symlink_to(base / "model.safetensors")


def leak_another_shard(folder: Path, base: Path) -> None:
    save(build(base), folder)
    shutil.copy(base / "model.safetensors", folder / "adapter_model-00002-of-00002.safetensors")


def leak_by_size(folder: Path, base: Path) -> None:
    """The base behind the tensors that the header lists."""
    save(build(base), folder)
    with (folder / WEIGHTS).open("ab") as file:
        file.write((base / "model.safetensors").read_bytes())


LEAKS: list[Leak] = [
    *(leak_a_resized_vocabulary, leak_targeted_embeddings, leak_modules_to_save, leak_every_bias),
    *(leak_the_full_state, leak_a_merged_model, leak_a_renamed_tensor, leak_by_padding),
    *(leak_a_pickle, leak_through_a_link, leak_another_shard, leak_by_size),
]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_stopped(leak: Leak, demo_model: Path, tmp_path: Path) -> None:
    leak(tmp_path, demo_model)

    with pytest.raises(VerificationError) as caught:
        check_adapter_folder(tmp_path, base_model="demo", base=demo_model)
    assert caught.value.code == "artifact_invalid"

    if leak is not leak_by_padding:  # which only the base's folder tells from an adapter
        with pytest.raises(VerificationError):
            check_adapter_folder(tmp_path, base_model="demo")


@pytest.mark.parametrize(
    ("variant", "quantization", "rank"),
    [
        *((variant, bits, 16) for variant in ("lora", "rslora", "dora") for bits in ("none", "8bit", "4bit")),
        *(("lora", "none", 1), ("dora", "none", 512)),
    ],
)
def test_no_adapter_of_this_trainer_is_stopped(
    variant: str, quantization: str, rank: int, demo_model: Path, tmp_path: Path
) -> None:
    settings = {"lora": {"variant": variant, "r": rank}, "quantization": quantization}
    training = TrainingConfig.model_validate(settings)
    base = load_base_model(ModelSource(id="demo", source=str(demo_model)), training, torch.device("cpu"))
    model = add_lora(base, training, revision=None, recompute=False, float32_adapter=True)
    save(model, tmp_path, save_embedding_layers=False)

    shapes = check_adapter_folder(tmp_path, base_model="demo", base=demo_model)

    assert len(shapes) == sum(parameter.requires_grad for parameter in model.parameters())
