"""From prepared rows to tensors: which sequences belong to which step, micro-batch and rank, and how they look.

The plan is a pure function of the rows, the seed and the batch sizes: any rank knows what all ranks do at any step,
without talking to them, and a run can go on from any step.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer_core.config import TrainingConfig
from trainer_core.data.packing import pack_rows
from trainer_core.errors import ConfigurationError

IntArray = npt.NDArray[np.int64]

# What "auto" aims at: enough tokens for efficient matrix products, few enough for the activations to fit.
_GPU_TOKENS_PER_PASS = 8192
_CPU_TOKENS_PER_PASS = 2048


class PreparedRows:
    """Memory-mapped rows that `prepare` wrote."""

    def __init__(self, folder: Path) -> None:
        self._tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self._mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")
        self._offsets: IntArray = np.load(folder / "offsets.npy")
        self.lengths: IntArray = np.diff(self._offsets)
        self.supervised: IntArray = np.load(folder / "supervised.npy")
        self.train: IntArray = np.load(folder / "train.npy")
        self.validation: IntArray = np.load(folder / "validation.npy")

    def get(self, row: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Token ids and loss mask of a row."""
        bounds = slice(self._offsets[row], self._offsets[row + 1])
        return self._tokens[bounds], self._mask[bounds]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One forward pass: B sequences of T tokens, int64 and bool, shape [B, T]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    """Start at 0 with every row: that is how the model's attention mask tells packed rows apart."""
    loss_mask: torch.Tensor
    """Tokens that the loss counts. Never the first of a row, never padding."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in dataclasses.astuple(self)))


class Sequences:
    """Rows arranged into sequences: packed up to `max_seq_len`, or one row each."""

    def __init__(self, rows: PreparedRows, selected: IntArray, *, max_seq_len: int, packing: bool) -> None:
        packed = pack_rows(rows.lengths[selected], max_seq_len) if packing else [[i] for i in range(len(selected))]
        self._rows = rows
        self._sequences: list[list[int]] = [selected[sequence].tolist() for sequence in packed]
        self.lengths = np.array([rows.lengths[sequence].sum() for sequence in self._sequences], dtype=np.int64)
        self.supervised = np.array([rows.supervised[sequence].sum() for sequence in self._sequences], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._sequences)

    def get_rows(self, sequence: int) -> list[int]:
        """The prepared rows in a sequence, in order."""
        return self._sequences[sequence]

    def collate(self, sequences: list[int]) -> Batch:
        """Right-padded to the longest. No sequences give one token that counts nowhere: a rank without work.

        Padding goes on with the last row's positions and needs no mask: attention is causal, so no token sees it.
        """
        length = int(self.lengths[sequences].max()) if sequences else 1
        shape = (max(1, len(sequences)), length)
        input_ids, loss_mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        position_ids = np.tile(np.arange(length), (shape[0], 1))
        for index, sequence in enumerate(sequences):
            start = 0
            for row in self._sequences[sequence]:
                tokens, mask = self._rows.get(row)
                end = start + len(tokens)
                input_ids[index, start:end] = tokens
                loss_mask[index, start:end] = mask
                position_ids[index, start:] = np.arange(length - start)
                start = end
        return Batch(torch.from_numpy(input_ids), torch.from_numpy(position_ids), torch.from_numpy(loss_mask))


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which sequences each optimizer step trains on.

    Sequences stream through the epochs, shuffled anew in each; a step takes the next `global_batch_size` of them, and
    the last step takes what is left.
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


def plan_batches(training: TrainingConfig, num_ranks: int, lengths: IntArray, *, on_gpu: bool) -> BatchPlan:
    """The plan for training sequences of these lengths. Raises ConfigurationError."""
    per_rank, rest = divmod(training.global_batch_size, num_ranks)
    micro = training.micro_batch_size
    if micro == "auto" and not rest:
        micro = _choose_micro_batch_size(per_rank, int(lengths.max()), on_gpu=on_gpu)
    if rest or micro == "auto" or per_rank % micro:
        raise ConfigurationError(
            "batch_sizes_do_not_divide",
            f"global_batch_size {training.global_batch_size} is no multiple of {num_ranks} processes"
            + ("." if micro == "auto" else f" times micro_batch_size {micro}."),
            remedy="Choose a global_batch_size that is, or leave micro_batch_size to 'auto'.",
        )
    num_to_train = round(training.epochs * len(lengths)) or 1
    if training.max_steps is not None:
        num_to_train = training.max_steps * training.global_batch_size
    return BatchPlan(len(lengths), num_to_train, training.global_batch_size, micro, num_ranks, training.seed)


def _choose_micro_batch_size(per_rank: int, longest: int, *, on_gpu: bool) -> int:
    """The largest divisor whose forward pass stays within the tokens that keep the device busy."""
    fitting = max(1, (_GPU_TOKENS_PER_PASS if on_gpu else _CPU_TOKENS_PER_PASS) // longest)
    return max(size for size in range(1, per_rank + 1) if per_rank % size == 0 and size <= fitting)


@functools.lru_cache(maxsize=2)  # a step can straddle two epochs
def _shuffle(seed: int, epoch: int, num_sequences: int) -> IntArray:
    return np.random.default_rng((seed, epoch)).permutation(num_sequences)
