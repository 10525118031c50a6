"""Packing loses no row, fills sequences well, and the batch plan serves every sequence once an epoch."""

import collections

import numpy as np
import pytest

from trainer_core.config import TrainingConfig
from trainer_core.data.batches import BatchPlan, plan_batches
from trainer_core.data.packing import pack_rows
from trainer_core.errors import ConfigurationError


def test_every_row_is_packed_once_and_no_sequence_overflows() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, size=2000)
    sequences = pack_rows(lengths, 512)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(2000))
    assert max(lengths[sequence].sum() for sequence in sequences) <= 512


def test_packing_leaves_little_room() -> None:
    lengths = np.random.default_rng(1).integers(10, 200, size=1000)
    sequences = pack_rows(lengths, 512)
    assert len(sequences) <= 1.02 * lengths.sum() / 512 + 1


def test_the_fullest_sequence_that_fits_takes_the_row() -> None:
    assert pack_rows(np.array([6, 7, 3, 4]), 10) == [[1, 2], [0, 3]]


def test_no_rows_make_no_sequences() -> None:
    assert pack_rows(np.array([], dtype=np.int64), 10) == []


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_and_micro_batches_share_a_step_without_gap_or_overlap(num_ranks: int) -> None:
    plan = BatchPlan(
        num_sequences=10,
        num_sequences_to_train=30,
        global_batch_size=8,
        micro_batch_size=2,
        num_ranks=num_ranks,
        seed=0,
    )
    assert plan.num_steps == 4
    seen: collections.Counter[int] = collections.Counter()
    for step in range(plan.num_steps):
        by_rank = [plan.get_micro_batches(step, rank) for rank in range(num_ranks)]
        assert {len(micro_batches) for micro_batches in by_rank} == {plan.accumulation}
        served = [sequence for micro_batches in by_rank for batch in micro_batches for sequence in batch]
        assert sorted(served) == sorted(plan.get_sequences(step))
        seen.update(served)
    assert set(seen.values()) == {3}  # three epochs, the last step being short


def test_epochs_are_shuffled_anew_and_by_the_seed() -> None:
    def get_epochs(seed: int) -> list[list[int]]:
        plan = BatchPlan(100, 200, global_batch_size=100, micro_batch_size=1, num_ranks=1, seed=seed)
        return [plan.get_sequences(0), plan.get_sequences(1)]

    first, second = get_epochs(0)
    assert first != second
    assert get_epochs(0) == [first, second]
    assert get_epochs(1)[0] != first


def test_evaluation_covers_every_sequence_in_as_many_rounds_on_every_rank() -> None:
    plan = BatchPlan(10, 10, global_batch_size=4, micro_batch_size=2, num_ranks=2, seed=0)
    by_rank = [plan.cut_for_evaluation(9, rank) for rank in range(2)]
    assert [len(batches) for batches in by_rank] == [3, 3]
    assert sorted(sequence for batches in by_rank for batch in batches for sequence in batch) == list(range(9))


def test_an_automatic_micro_batch_divides_the_global_one_and_stays_within_the_budget() -> None:
    config = TrainingConfig(global_batch_size=12, max_seq_len=512)
    assert plan_batches(config, 1, np.array([512]), on_gpu=False).micro_batch_size == 4
    assert plan_batches(config, 2, np.array([512]), on_gpu=True).micro_batch_size == 6
    assert plan_batches(config, 1, np.array([100_000]), on_gpu=True).micro_batch_size == 1


@pytest.mark.parametrize(("global_batch_size", "micro_batch_size", "num_ranks"), [(16, 8, 4), (16, "auto", 3)])
def test_batch_sizes_that_do_not_divide_are_refused(
    global_batch_size: int, micro_batch_size: int | str, num_ranks: int
) -> None:
    config = TrainingConfig.model_validate(
        {"global_batch_size": global_batch_size, "micro_batch_size": micro_batch_size}
    )
    with pytest.raises(ConfigurationError) as caught:
        plan_batches(config, num_ranks, np.array([10]), on_gpu=False)
    assert caught.value.code == "batch_sizes_do_not_divide"
