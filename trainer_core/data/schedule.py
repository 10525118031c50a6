"""Which sequences belong to which step, rank and micro-batch.

A pure function of the number of sequences, the seed and the batch sizes: any rank knows what all ranks do at any step,
without talking to them, and a run can go on from any step.
"""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from trainer_core.config import TrainingConfig
from trainer_core.planning.plan import Plan, count_sequences_to_train

IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Sequences stream through the epochs, shuffled anew in each; a step takes the next `global_batch_size` of them,
    and the last step takes what is left.
    """

    num_sequences: int
    num_sequences_to_train: int
    global_batch_size: int
    micro_batch_size: int
    num_ranks: int
    seed: int

    @property
    def num_steps(self) -> int:
        return -(-self.num_sequences_to_train // self.global_batch_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches per step and rank."""
        return self.global_batch_size // (self.micro_batch_size * self.num_ranks)

    def get_epoch(self, step: int) -> float:
        """Epochs behind after `step` steps."""
        return min(step * self.global_batch_size, self.num_sequences_to_train) / self.num_sequences

    def get_sequences(self, step: int) -> list[int]:
        """All sequences of a step (counted from 0), over all ranks."""
        first = step * self.global_batch_size
        stop = min(first + self.global_batch_size, self.num_sequences_to_train)
        places = (divmod(place, self.num_sequences) for place in range(first, stop))
        return [int(_shuffle(self.seed, epoch, self.num_sequences)[index]) for epoch, index in places]

    def get_micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """A rank's sequences of a step, cut into `accumulation` micro-batches; the last step's may be empty."""
        own, size = self.get_sequences(step)[rank :: self.num_ranks], self.micro_batch_size
        return [own[index * size : (index + 1) * size] for index in range(self.accumulation)]

    def cut_for_evaluation(self, num_sequences: int, rank: int) -> list[list[int]]:
        """A rank's share of other sequences in micro-batches: as many on every rank, since the ranks work in step."""
        per_round = self.micro_batch_size * self.num_ranks
        firsts = range(rank * self.micro_batch_size, -(-num_sequences // per_round) * per_round, per_round)
        return [list(range(first, min(first + self.micro_batch_size, num_sequences))) for first in firsts]


def build_schedule(training: TrainingConfig, plan: Plan, num_sequences: int) -> Schedule:
    """Of training sequences that were arranged already."""
    return Schedule(
        num_sequences,
        count_sequences_to_train(training, num_sequences),
        training.global_batch_size,
        plan.micro_batch_size,
        plan.num_processes,
        training.seed,
    )


@functools.lru_cache(maxsize=2)  # a step can straddle two epochs
def _shuffle(seed: int, epoch: int, num_sequences: int) -> IntArray:
    return np.random.default_rng((seed, epoch)).permutation(num_sequences)
