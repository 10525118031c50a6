"""`prepare`: tokenise every row once, on the CPU, before any rank or GPU is busy.

    RUN_DIR/prepared/
      tokens.bin       int32, the token ids of all rows one after another
      mask.bin         uint8, 1 where the loss counts the token
      offsets.npy      int64 [rows + 1], row i is tokens[offsets[i]:offsets[i + 1]]
      supervised.npy   int64 [rows], tokens of each row that the loss counts
      train.npy        int64, the rows to train on
      validation.npy   int64, the rows held out
      manifest.json    PreparedManifest, written last: a folder with it is complete

Rows stream from disk to disk: memory does not grow with the file.
"""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from trainer_core.data.formats import RowError, iter_lines, parse_row
from trainer_core.data.templates import Span, render, tokenize
from trainer_core.errors import DataError
from trainer_core.reporting import NoticeEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec
from trainer_core.tokenizer import load_tokenizer

IntArray = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

_ROWS_PER_TOKENIZER_CALL = 256  # enough to keep the tokenizer's threads busy


class PreparedManifest(BaseModel):
    """Counts over the training and the validation file together."""

    train_rows: int = 0
    validation_rows: int = 0
    dropped_rows: int = 0
    """Longer than max_seq_len and left out, or without an answer once cut."""
    truncated_rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest_row_tokens: int = 0


def prepare(run_dir: RunDir, reporter: Reporter) -> PreparedManifest:
    """Tokenise the run's rows, unless that is done already. Raises DataError."""
    manifest_path = run_dir.prepared / "manifest.json"
    if manifest_path.exists():
        return PreparedManifest.model_validate_json(manifest_path.read_bytes())
    reporter.report(PhaseEvent(phase="preparing", message="tokenising the rows"))
    spec = run_dir.load_spec()
    tokenizer = load_tokenizer(spec)
    run_dir.prepared.mkdir(exist_ok=True)
    with _RowWriter(run_dir.prepared, spec, tokenizer) as writer:
        train = writer.write_file(Path(spec.train_path))
        validation = writer.write_file(Path(spec.validation.path)) if spec.validation.path else range(0)
    manifest = writer.manifest
    train_rows, validation_rows = _split(train, validation, spec)
    if len(train_rows) == 0:
        raise _describe_nothing_left(manifest, spec.training.max_seq_len)
    np.save(run_dir.prepared / "train.npy", train_rows)
    np.save(run_dir.prepared / "validation.npy", validation_rows)
    manifest.train_rows, manifest.validation_rows = len(train_rows), len(validation_rows)
    _report_counts(manifest, spec, reporter)
    partial = manifest_path.with_suffix(".partial")
    partial.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    partial.rename(manifest_path)
    return manifest


class _RowWriter:
    """Appends rows to tokens.bin and mask.bin, and writes offsets.npy when it closes."""

    def __init__(self, folder: Path, spec: RunSpec, tokenizer: Any) -> None:
        self.manifest = PreparedManifest()
        self._folder = folder
        self._training = spec.training
        self._tokenizer = tokenizer
        self._offsets = [0]
        self._supervised: list[int] = []

    def __enter__(self) -> "_RowWriter":
        self._tokens: BinaryIO = (self._folder / "tokens.bin").open("wb")
        self._mask: BinaryIO = (self._folder / "mask.bin").open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._mask.close()
        np.save(self._folder / "offsets.npy", np.array(self._offsets, dtype=np.int64))
        np.save(self._folder / "supervised.npy", np.array(self._supervised, dtype=np.int64))

    def write_file(self, path: Path) -> range:
        """Append a file's rows. Returns their indices."""
        first = len(self._offsets) - 1
        with path.open("rb") as file:
            rows = self._render_rows(file)
            while batch := list(itertools.islice(rows, _ROWS_PER_TOKENIZER_CALL)):
                lines, texts, spans = zip(*batch, strict=True)
                for line, row in zip(lines, tokenize(self._tokenizer, texts, spans), strict=True):
                    self._write_row(line, *row)
        return range(first, len(self._offsets) - 1)

    def _render_rows(self, file: BinaryIO) -> Iterator[tuple[int, str, list[Span]]]:
        for line, content in iter_lines(file):
            try:
                yield line, *render(self._tokenizer, parse_row(content))
            except RowError as error:
                raise DataError(error.code, f"Line {line}: {error.message}", line=line) from None
            except DataError as error:
                raise DataError(error.code, f"Line {line}: {error.message}", remedy=error.remedy, line=line) from None

    def _write_row(self, line: int, tokens: list[int], mask: list[int]) -> None:
        limit, manifest = self._training.max_seq_len, self.manifest
        if self._training.train_on == "all":
            mask = [1] * len(tokens)
        mask[:1] = [0]  # nothing predicts the first token; in a packed sequence another row's end would
        if not any(mask):
            raise DataError(
                "no_supervised_token",
                f"Line {line}: no token of the row is an answer's, so there is nothing to learn from it.",
                remedy="Check the row's answer and the chat template.",
                line=line,
            )
        manifest.longest_row_tokens = max(manifest.longest_row_tokens, len(tokens))
        if len(tokens) > limit:
            if self._training.truncation == "fail":
                raise _describe_long_row(line, len(tokens), limit)
            tokens, mask = tokens[:limit], mask[:limit]
            if self._training.truncation == "drop" or not any(mask):
                manifest.dropped_rows += 1
                return
            manifest.truncated_rows += 1
        np.array(tokens, dtype=np.int32).tofile(self._tokens)
        np.array(mask, dtype=np.uint8).tofile(self._mask)
        self._offsets.append(self._offsets[-1] + len(tokens))
        manifest.tokens += len(tokens)
        self._supervised.append(sum(mask))
        manifest.supervised_tokens += sum(mask)


def _split(train: range, validation: range, spec: RunSpec) -> tuple[IntArray, IntArray]:
    """Row indices to train on and to hold out; a fraction is drawn by the run's seed and leaves both sides a row."""
    rows, held_out = np.array(train, dtype=np.int64), np.array(validation, dtype=np.int64)
    if spec.validation.fraction is None or len(rows) < 2:
        return rows, held_out
    num_held_out = min(max(1, round(len(rows) * spec.validation.fraction)), len(rows) - 1)
    drawn = np.random.default_rng(spec.training.seed).permutation(rows)
    return np.sort(drawn[num_held_out:]), np.sort(np.concatenate([drawn[:num_held_out], held_out]))


def _report_counts(manifest: PreparedManifest, spec: RunSpec, reporter: Reporter) -> None:
    counts = manifest.model_dump()
    log.info("prepared %s", " ".join(f"{name}={count}" for name, count in counts.items()))
    limit = spec.training.max_seq_len
    if manifest.dropped_rows:
        message = f"{manifest.dropped_rows} rows are longer than max_seq_len = {limit} tokens and were left out."
        reporter.report(NoticeEvent(code="rows_dropped", message=message, details=counts))
    if manifest.truncated_rows:
        message = f"{manifest.truncated_rows} rows are longer than max_seq_len = {limit} tokens and were cut."
        reporter.report(NoticeEvent(code="rows_truncated", message=message, details=counts))


def _describe_long_row(line: int, num_tokens: int, limit: int) -> DataError:
    return DataError(
        "row_too_long",
        f"Line {line}: the row has {num_tokens} tokens, max_seq_len is {limit}, and truncation is 'fail'.",
        remedy="Raise max_seq_len, or set truncation to 'drop' or 'truncate'.",
        line=line,
    )


def _describe_nothing_left(manifest: PreparedManifest, limit: int) -> DataError:
    if manifest.dropped_rows == 0:
        return DataError("no_rows", "The training file holds no rows.", remedy="Upload a file with rows.")
    return DataError(
        "all_rows_too_long",
        f"Every row is longer than max_seq_len = {limit} tokens; the longest has {manifest.longest_row_tokens}.",
        remedy="Raise max_seq_len, or set truncation to 'truncate'.",
        **manifest.model_dump(),
    )
