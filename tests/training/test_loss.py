"""Neither packing nor the cut into micro-batches and ranks changes what is learned."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.conftest import CreateRun
from trainer_core.config import TrainingConfig
from trainer_core.data.batches import BatchPlan, PreparedRows, Sequences
from trainer_core.data.prepare import prepare
from trainer_core.errors import ConfigurationError
from trainer_core.loss import compute_sequence_nll
from trainer_core.model import add_lora, check_packing
from trainer_core.reporting import Reporter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def model(demo_model: Path) -> Any:
    """In float32, where only real differences are visible."""
    return AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def rows(create_run: CreateRun) -> PreparedRows:
    run_dir = create_run()
    with contextlib.closing(Reporter(run_dir.events)) as reporter:
        prepare(run_dir, reporter)
    return PreparedRows(run_dir.prepared)


def arrange(rows: PreparedRows, *, packing: bool) -> Sequences:
    return Sequences(rows, rows.train[:16], max_seq_len=512, packing=packing)


@torch.no_grad()
def test_a_packed_rows_logits_are_its_own(model: Any, rows: PreparedRows) -> None:
    packed = arrange(rows, packing=True)
    longest_pack = max(range(len(packed)), key=lambda index: len(packed.get_rows(index)))
    packed_rows = packed.get_rows(longest_pack)
    assert len(packed_rows) > 1
    batch = packed.collate([longest_pack])
    together = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
    start = 0
    for row in packed_rows:
        tokens = torch.from_numpy(rows.get(row)[0].astype("int64"))
        alone = model(input_ids=tokens[None], use_cache=False).logits[0]
        torch.testing.assert_close(together[start : start + len(tokens)], alone, rtol=1e-4, atol=1e-4)
        start += len(tokens)


@torch.no_grad()
def test_padding_changes_no_rows_loss(model: Any, rows: PreparedRows) -> None:
    sequences = arrange(rows, packing=False)
    together = compute_sequence_nll(model, sequences.collate(list(range(8))))
    alone = torch.cat([compute_sequence_nll(model, sequences.collate([index])) for index in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_packed_and_padded_rows_have_the_same_total_loss(model: Any, rows: PreparedRows) -> None:
    totals = []
    for packing in (True, False):
        sequences = arrange(rows, packing=packing)
        totals.append(compute_sequence_nll(model, sequences.collate(list(range(len(sequences))))).sum())
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("micro_batch_size", "num_ranks"), [(4, 1), (1, 1), (2, 2), (1, 2), (1, 4)])
def test_gradients_do_not_depend_on_how_a_step_is_cut(
    model: Any, rows: PreparedRows, micro_batch_size: int, num_ranks: int
) -> None:
    sequences = arrange(rows, packing=False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    weight = model.model.layers[0].self_attn.q_proj.weight

    def compute_gradient(micro: int, ranks: int) -> torch.Tensor:
        plan = BatchPlan(len(sequences), 10, global_batch_size=8, micro_batch_size=micro, num_ranks=ranks, seed=0)
        step = plan.num_steps - 1  # two sequences are left: some micro-batches are empty
        num_supervised = int(sequences.supervised[plan.get_sequences(step)].sum())
        weight.grad = None
        for rank in range(ranks):
            for micro_batch in plan.get_micro_batches(step, rank):
                loss = compute_sequence_nll(model, sequences.collate(micro_batch)).sum() / num_supervised
                torch.autograd.backward(loss)
        return torch.as_tensor(weight.grad)

    whole, cut = compute_gradient(8, 1), compute_gradient(micro_batch_size, num_ranks)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_a_model_that_keeps_packed_rows_apart_passes_the_check(model: Any) -> None:
    check_packing(model, model.config.vocab_size, torch.device("cpu"))


def test_a_model_that_ignores_where_positions_start_anew_is_refused(model: Any) -> None:
    forward = model.forward

    def leak(input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any) -> Any:
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return forward(input_ids=input_ids, position_ids=positions, **options)

    model.forward = leak
    with pytest.raises(ConfigurationError) as caught:
        check_packing(model, model.config.vocab_size, torch.device("cpu"))
    assert caught.value.code == "packing_leaks"


def test_target_modules_that_match_nothing_are_refused_with_those_there_are(model: Any) -> None:
    config = TrainingConfig.model_validate({"lora": {"target_modules": ["q_proj", "query"]}})
    with pytest.raises(ConfigurationError, match="query") as caught:
        add_lora(model, config, float32_adapter=True)
    assert caught.value.code == "target_modules_match_nothing"
    assert "up_proj" in caught.value.details["available"]


def test_all_linear_leaves_the_output_head_alone(model: Any) -> None:
    adapter = add_lora(model, TrainingConfig(), float32_adapter=True)
    trainable = {name for name, weight in adapter.named_parameters() if weight.requires_grad}
    assert len(trainable) == 2 * 7 * 4  # A and B, seven layers in each of four blocks
    assert not any("lm_head" in name for name in trainable)
