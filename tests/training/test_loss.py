"""Neither packing, nor padding, nor the cut into micro-batches and ranks changes what is learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from trainer_core.attention import drop_row_attention, has_row_attention, rows_given
from trainer_core.config import TrainingConfig
from trainer_core.data.batches import Batch, Row, build_batch
from trainer_core.errors import ConfigurationError
from trainer_core.head import unteach_head
from trainer_core.loss import choose_layout, compute_sequence_nll, lay_out
from trainer_core.model import add_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]

CPU = torch.device("cpu")
LENGTHS = [(5, 1, 30), (7,), (12, 20)]  # of the rows in three sequences


@pytest.fixture(params=["rows", "padded"])
def model(request: pytest.FixtureRequest, demo_model: Path) -> Any:
    """In float32, where only real differences are visible; in the fast layout, and in the one that every model has."""
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).requires_grad_(False)
    choose_layout(model, CPU, packing=True)
    assert has_row_attention(model)
    if request.param == "padded":
        drop_row_attention(model)
        unteach_head(model)
    return model


@pytest.fixture
def sequences() -> list[list[Row]]:
    return [[draw_row(length) for length in lengths] for lengths in LENGTHS]


def draw_row(length: int) -> Row:
    """Random tokens; the later half counts."""
    tokens = np.random.default_rng(length).integers(0, 2048, length, dtype=np.int32)
    return tokens, (np.arange(length) > length // 2).astype(np.uint8)


def compute_own_logits(model: Any, row: Row) -> torch.Tensor:
    """What transformers gives for a row by itself, [T, V]."""
    logits: torch.Tensor = model(input_ids=torch.from_numpy(row[0].astype(np.int64))[None], use_cache=False).logits[0]
    return logits


def compute_own_nll(model: Any, row: Row) -> torch.Tensor:
    counts = torch.from_numpy(row[1]).bool()[1:]
    targets = torch.from_numpy(row[0].astype(np.int64))[1:]
    return F.cross_entropy(compute_own_logits(model, row)[:-1][counts], targets[counts], reduction="sum")


@torch.no_grad()
def test_a_packed_rows_logits_are_its_own(model: Any, sequences: list[list[Row]]) -> None:
    batch = build_batch(sequences)
    inputs, _ = lay_out(model, batch)
    with rows_given(has_row_attention(model)):
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
    together = logits if has_row_attention(model) else logits[batch.padded_places]
    alone = torch.cat([compute_own_logits(model, row) for sequence in sequences for row in sequence])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_sequences_loss_is_the_sum_of_its_rows_own(model: Any, sequences: list[list[Row]]) -> None:
    together = compute_sequence_nll(model, build_batch(sequences))
    alone = torch.stack([sum((compute_own_nll(model, row) for row in s), torch.zeros(())) for s in sequences])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_rows_in_sequences_of_their_own_have_the_same_total_loss(model: Any, sequences: list[list[Row]]) -> None:
    packed = compute_sequence_nll(model, build_batch(sequences)).sum()
    apart = compute_sequence_nll(model, build_batch([[row] for sequence in sequences for row in sequence])).sum()
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-4)


def with_gradients(model: Any) -> Any:
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    return model


def compute_gradient(model: Any, losses: list[torch.Tensor]) -> torch.Tensor:
    weight = with_gradients(model).model.layers[0].self_attn.q_proj.weight
    weight.grad = None
    for loss in losses:
        torch.autograd.backward(loss)
    return torch.as_tensor(weight.grad)


@pytest.mark.parametrize("cut", [[[0, 1, 2]], [[0], [1], [2]], [[2, 0], [], [1]]])
def test_gradients_do_not_depend_on_how_a_step_is_cut(
    model: Any, sequences: list[list[Row]], cut: list[list[int]]
) -> None:
    with_gradients(model)
    alone = compute_gradient(model, [compute_own_nll(model, row) for sequence in sequences for row in sequence])
    batches = [build_batch([sequences[index] for index in micro_batch]) for micro_batch in cut]
    together = compute_gradient(model, [compute_sequence_nll(model, batch).sum() for batch in batches])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_recomputing_activations_changes_no_gradient(demo_model: Path, sequences: list[list[Row]]) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).requires_grad_(False)
        adapter = add_lora(base, TrainingConfig(), revision=None, recompute=recompute, float32_adapter=True)
        choose_layout(adapter, CPU, packing=True)
        adapter.train()
        torch.autograd.backward(compute_sequence_nll(adapter, build_batch(sequences)).sum())
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_rank_without_work_gives_a_loss_of_zero_that_can_be_differentiated(model: Any) -> None:
    gradient = compute_gradient(model, [compute_sequence_nll(with_gradients(model), build_batch([])).sum()])
    assert not gradient.any()


def ignore_rows(forward: Callable[..., Any], **inputs: Any) -> Any:
    return forward(**{name: value for name, value in inputs.items() if not name.startswith(("cu_seq", "max_length"))})


def load(demo_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).requires_grad_(False)


def test_a_model_that_is_deaf_to_row_bounds_is_told_rows_by_their_positions(
    demo_model: Path, sequences: list[list[Row]]
) -> None:
    model = load(demo_model)
    expected = torch.stack([sum((compute_own_nll(model, row) for row in s), torch.zeros(())) for s in sequences])
    forward = model.forward
    model.forward = lambda **inputs: ignore_rows(forward, **inputs)
    choose_layout(model, CPU, packing=True)
    assert not has_row_attention(model)
    torch.testing.assert_close(compute_sequence_nll(model, build_batch(sequences)), expected)


def test_a_batch_moves_whole() -> None:
    batch = build_batch([[draw_row(4)]])
    assert isinstance(batch.to(torch.device("meta")), Batch)
    assert batch.to(torch.device("meta")).targets.is_meta


def test_target_modules_that_match_nothing_are_refused_with_those_there_are(demo_model: Path) -> None:
    config = TrainingConfig.model_validate({"lora": {"target_modules": ["q_proj", "query"]}})
    with pytest.raises(ConfigurationError, match="query") as caught:
        add_lora(load(demo_model), config, revision=None, recompute=False, float32_adapter=True)
    assert caught.value.code == "target_modules_match_nothing"
    assert "up_proj" in caught.value.details["available"]


def test_all_linear_leaves_the_output_head_alone(demo_model: Path) -> None:
    adapter = add_lora(load(demo_model), TrainingConfig(), revision=None, recompute=False, float32_adapter=True)
    trainable = {name for name, weight in adapter.named_parameters() if weight.requires_grad}
    assert len(trainable) == 2 * 7 * 4  # A and B, seven layers in each of four blocks
    assert not any("lm_head" in name for name in trainable)
