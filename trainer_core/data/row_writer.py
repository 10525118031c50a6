"""RowWriter: tokenised rows onto the disk, one after another, longer ones by the run's truncation policy.

Memory holds a few bytes per row and nothing of its tokens.
"""

from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from trainer_core.config import TrainingConfig
from trainer_core.data.row_report import SAMPLE_ROWS, RowLengths
from trainer_core.data.templates import TokenizedText
from trainer_core.errors import DataError

IntArray = npt.NDArray[np.int64]


class PreparedManifest(BaseModel):
    """Counts over the training and the validation file together."""

    train_rows: int = 0
    validation_rows: int = 0
    train_sequences: int = 0
    """What the training rows are packed into; without packing one for each row."""
    validation_sequences: int = 0
    dropped_rows: int = 0
    """Longer than max_seq_len and left out, or without an answer once cut."""
    truncated_rows: int = 0
    """Longer than max_seq_len and cut at the end."""
    split_rows: int = 0
    """Longer than max_seq_len and cut into several rows."""
    dropped_pieces: int = 0
    """Of split rows: without a token of an answer, and left out."""
    unrolled_rows: int = 0
    """Conversations that became a row for each answer."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_row_tokens: int = 0
    """Before anything was cut."""
    sha256: str = ""
    """Of tokens.bin and mask.bin."""
    made_from: str = ""
    """RunSpec.digest_rows of the spec that they were made by."""


def load_manifest(prepared: Path) -> PreparedManifest:
    return PreparedManifest.model_validate_json((prepared / "manifest.json").read_bytes())


class RowWriter:
    """Appends rows to tokens.bin and mask.bin, and writes offsets.npy and supervised.npy when it closes."""

    def __init__(self, folder: Path, training: TrainingConfig) -> None:
        self.manifest = PreparedManifest()
        self.lengths_before = RowLengths(training.max_seq_len)
        self.first_rows: list[tuple[int, list[int], list[int]]] = []
        """Line, tokens and mask of the first rows that were written."""
        self._folder = folder
        self._training = training
        self._offsets = array("q", [0])
        self._supervised = array("q")
        self._lines = array("q")

    def __enter__(self) -> "RowWriter":
        self._tokens: BinaryIO = (self._folder / "tokens.bin").open("wb")
        self._mask: BinaryIO = (self._folder / "mask.bin").open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._mask.close()
        np.save(self._folder / "offsets.npy", self._offsets)
        np.save(self._folder / "supervised.npy", self._supervised)

    def __len__(self) -> int:
        return len(self._supervised)

    @property
    def lengths(self) -> IntArray:
        """int64 [rows]: tokens of each row."""
        offsets = np.array(self._offsets, dtype=np.int64)
        return offsets[1:] - offsets[:-1]

    @property
    def lines(self) -> IntArray:
        """int64 [rows]: the line of its file that each row came from; a line may have become several rows."""
        return np.array(self._lines, dtype=np.int64)

    def write(self, text: TokenizedText, *, line: int) -> None:
        """Append a row, or what the truncation policy leaves of it. Raises DataError."""
        tokens, mask, manifest = text.tokens, text.mask, self.manifest
        if self._training.train_on == "all":
            mask = np.ones_like(mask)
        if not mask[1:].any():
            raise _describe_row_without_answer(line)
        manifest.longest_row_tokens = max(manifest.longest_row_tokens, len(tokens))
        self.lengths_before.add(len(tokens))
        limit = self._training.max_seq_len
        is_long = len(tokens) > limit
        if is_long and self._training.truncation == "fail":
            raise _describe_long_row(line, len(tokens), limit)
        end = {"drop": 0, "truncate": limit}.get(self._training.truncation, len(tokens)) if is_long else len(tokens)
        pieces = [slice(first, first + limit) for first in range(0, end, limit)]
        num_written = sum(self._append(tokens[piece], mask[piece], line) for piece in pieces)
        if is_long:
            self._count_long_row(num_written, len(pieces))

    def _append(self, tokens: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8], line: int) -> bool:
        """False for a row that nothing can be learned from."""
        mask[:1] = 0  # nothing predicts the first token; in a packed sequence another row's end would
        num_supervised = int(mask.sum())
        if num_supervised == 0:
            return False
        if len(self.first_rows) < SAMPLE_ROWS:
            self.first_rows.append((line, tokens.tolist(), mask.tolist()))
        tokens.tofile(self._tokens)
        mask.tofile(self._mask)
        self._offsets.append(self._offsets[-1] + len(tokens))
        self._supervised.append(num_supervised)
        self._lines.append(line)
        self.manifest.tokens += len(tokens)
        self.manifest.supervised_tokens += num_supervised
        return True

    def _count_long_row(self, num_written: int, num_pieces: int) -> None:
        manifest = self.manifest
        if num_written == 0:
            manifest.dropped_rows += 1
        elif self._training.truncation == "truncate":
            manifest.truncated_rows += 1
        else:
            manifest.split_rows += 1
            manifest.dropped_pieces += num_pieces - num_written


def _describe_row_without_answer(line: int) -> DataError:
    return DataError(
        "no_supervised_token",
        f"Line {line}: no token of the row is an answer's, so there is nothing to learn from it.",
        remedy="Check the row's answer and the chat template.",
        line=line,
    )


def _describe_long_row(line: int, num_tokens: int, limit: int) -> DataError:
    return DataError(
        "row_too_long",
        f"Line {line}: the row has {num_tokens} tokens, max_seq_len is {limit}, and truncation is 'fail'.",
        remedy="Raise max_seq_len, or set truncation to 'drop', 'truncate' or 'split'.",
        line=line,
    )
