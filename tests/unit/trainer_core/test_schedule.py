"""The schedule serves every sequence once an epoch, to one rank and micro-batch."""

import collections

import pytest

from trainer_core.data.schedule import Schedule


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_and_micro_batches_share_a_step_without_gap_or_overlap(num_ranks: int) -> None:
    schedule = Schedule(
        num_sequences=10,
        num_sequences_to_train=30,
        global_batch_size=8,
        micro_batch_size=2,
        num_ranks=num_ranks,
        seed=0,
    )
    assert schedule.num_steps == 4
    seen: collections.Counter[int] = collections.Counter()
    for step in range(schedule.num_steps):
        by_rank = [schedule.get_micro_batches(step, rank) for rank in range(num_ranks)]
        assert {len(micro_batches) for micro_batches in by_rank} == {schedule.accumulation}
        served = [sequence for micro_batches in by_rank for batch in micro_batches for sequence in batch]
        assert sorted(served) == sorted(schedule.get_sequences(step))
        seen.update(served)
    assert set(seen.values()) == {3}  # three epochs, the last step being short


def test_epochs_are_shuffled_anew_and_by_the_seed() -> None:
    def get_epochs(seed: int) -> list[list[int]]:
        schedule = Schedule(100, 200, global_batch_size=100, micro_batch_size=1, num_ranks=1, seed=seed)
        return [schedule.get_sequences(0), schedule.get_sequences(1)]

    first, second = get_epochs(0)
    assert first != second
    assert get_epochs(0) == [first, second]
    assert get_epochs(1)[0] != first


def test_evaluation_covers_every_sequence_in_as_many_rounds_on_every_rank() -> None:
    schedule = Schedule(10, 10, global_batch_size=4, micro_batch_size=2, num_ranks=2, seed=0)
    by_rank = [schedule.cut_for_evaluation(9, rank) for rank in range(2)]
    assert [len(batches) for batches in by_rank] == [3, 3]
    assert sorted(sequence for batches in by_rank for batch in batches for sequence in batch) == list(range(9))
