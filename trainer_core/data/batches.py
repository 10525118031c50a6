"""From prepared rows to tensors: how rows are arranged into sequences, and how a micro-batch of sequences looks."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trainer_core.data.packing import Arrangement, arrange_rows

IntArray = npt.NDArray[np.int64]


class PreparedRows:
    """Memory-mapped rows that `prepare` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self._mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")
        self._offsets: IntArray = np.load(folder / "offsets.npy")
        self.lengths: IntArray = np.diff(self._offsets)
        self.supervised: IntArray = np.load(folder / "supervised.npy")
        self.train: IntArray = np.load(folder / "train.npy")
        self.validation: IntArray = np.load(folder / "validation.npy")

    def get(self, row: int) -> "Row":
        bounds = slice(self._offsets[row], self._offsets[row + 1])
        return self._tokens[bounds], self._mask[bounds]


Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
"""Token ids and loss mask."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """One forward pass: B sequences' R rows laid one after another, N tokens without padding, S of which count."""

    input_ids: torch.Tensor
    """int64 [1, N]."""
    position_ids: torch.Tensor
    """int64 [1, N]: start at 0 with every row."""
    row_bounds: torch.Tensor
    """int32 [R + 1]: where each row starts, and the last one ends."""
    longest_row: int
    targets: torch.Tensor
    """int64 [S]: the tokens that the loss counts. Never the first of a row."""
    predictors: torch.Tensor
    """int64 [S]: the places in [0, N) whose outputs predict them."""
    target_sequences: torch.Tensor
    """int64 [S]: the sequences in [0, B) that they belong to."""
    padded_shape: tuple[int, int]
    """[B, T]: the same sequences one below the other."""
    padded_places: torch.Tensor
    """int64 [N]: where the tokens are in [B x T]."""

    @property
    def num_sequences(self) -> int:
        return self.padded_shape[0]

    def to(self, device: torch.device) -> "Batch":
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        moved: dict[str, Any] = {n: v.to(device, non_blocking=True) for n, v in values if isinstance(v, torch.Tensor)}
        return dataclasses.replace(self, **moved)

    def pad(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and position ids, int64 [B, T], padded on the right.

        Padding needs no mask: attention is causal, so that no token sees it.
        """
        input_ids = self.input_ids.new_zeros(self.padded_shape)
        position_ids = torch.arange(self.padded_shape[1], device=input_ids.device).repeat(self.padded_shape[0], 1)
        input_ids.view(-1)[self.padded_places] = self.input_ids[0]
        position_ids.view(-1)[self.padded_places] = self.position_ids[0]
        return input_ids, position_ids


def build_batch(sequences: list[list[Row]]) -> Batch:
    """Of sequences of rows. No sequences give one token that counts nowhere: a rank without work."""
    sequences = sequences or [[(np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.uint8))]]
    rows = [row for sequence in sequences for row in sequence]
    tokens, mask = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    row_places, row_bounds = _number_places([len(row) for row, _ in rows])
    lengths = [sum(len(row) for row, _ in sequence) for sequence in sequences]
    places, _ = _number_places(lengths)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    supervised = np.flatnonzero(mask)
    return Batch(
        input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
        position_ids=torch.from_numpy(row_places)[None],
        row_bounds=torch.from_numpy(row_bounds.astype(np.int32)),
        longest_row=max(len(row) for row, _ in rows),
        targets=torch.from_numpy(tokens[supervised].astype(np.int64)),
        predictors=torch.from_numpy(supervised - 1),
        target_sequences=torch.from_numpy(owners[supervised]),
        padded_shape=(len(lengths), max(lengths)),
        padded_places=torch.from_numpy(owners * max(lengths) + places),
    )


def _number_places(lengths: list[int]) -> tuple[IntArray, IntArray]:
    """0, 1, ... anew in each of several pieces laid one after another; and the pieces' bounds."""
    bounds = np.cumsum([0, *lengths])
    return np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths), bounds


class Sequences:
    """Rows arranged into sequences: packed up to `max_seq_len`, or one row each."""

    def __init__(self, rows: PreparedRows, selected: IntArray, *, max_seq_len: int, packing: bool) -> None:
        self._set(rows, arrange_rows(rows.lengths, selected, max_seq_len=max_seq_len, packing=packing))

    @classmethod
    def load(cls, rows: PreparedRows, name: Literal["train", "validation"]) -> "Sequences":
        """As `prepare` arranged them by the run's `max_seq_len` and `packing`."""
        sequences = cls.__new__(cls)
        sequences._set(rows, Arrangement.load(rows.folder, name))
        return sequences

    def _set(self, rows: PreparedRows, sequences: Arrangement) -> None:
        self._rows = rows
        self._sequences = sequences
        self.lengths: IntArray = sequences.sum_rows(rows.lengths)
        self.supervised: IntArray = sequences.sum_rows(rows.supervised)

    def __len__(self) -> int:
        return len(self._sequences)

    def get_rows(self, sequence: int) -> list[int]:
        """The prepared rows in a sequence, in order."""
        return self._sequences[sequence]

    def collate(self, sequences: list[int]) -> Batch:
        """The forward pass over some of the sequences."""
        return build_batch([[self._rows.get(row) for row in self._sequences[sequence]] for sequence in sequences])
