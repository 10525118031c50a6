"""`prepare`: tokenise and pack every row once, on the CPU, before any rank or GPU is busy.

    RUN_DIR/prepared/
      tokens.bin                  int32, the token ids of all rows one after another
      mask.bin                    uint8, 1 where the loss counts the token
      offsets.npy                 int64 [rows + 1], row i is tokens[offsets[i]:offsets[i + 1]]
      supervised.npy              int64 [rows], tokens of each row that the loss counts
      train.npy                   int64, the rows to train on
      train_sequences.npy         int64, the same rows in the order of the sequences that they are packed into
      train_sequence_offsets.npy  int64 [sequences + 1], sequence i is train_sequences[offsets[i]:offsets[i + 1]]
      validation*.npy             the same three of the rows held out
      rows.json                   RowReport, for people: it shows some of the rows
      manifest.json               PreparedManifest, written last: a folder with it is complete

Rows stream from disk to disk: memory grows by a few bytes for each row, and not with what it says.
"""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer_core.data.files import iter_rows
from trainer_core.data.formats import RowError
from trainer_core.data.overlap.search import find_validation_overlap
from trainer_core.data.packing import arrange_rows
from trainer_core.data.row_report import REPORT_FILE, RowReport, build_sample_row
from trainer_core.data.row_writer import PreparedManifest, RowWriter, load_manifest
from trainer_core.data.templates import RenderedText, count_stopped_answers, list_stop_tokens, render, tokenize
from trainer_core.errors import DataError
from trainer_core.reporting import NoticeEvent, PhaseEvent, Reporter
from trainer_core.run_dir import RunDir, RunSpec, write_file
from trainer_core.tokenizer import load_tokenizer

IntArray = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

# Enough to keep the tokenizer's threads busy, and no more than memory holds easily.
_TEXTS_PER_BATCH = 256
_CHARACTERS_PER_BATCH = 1_000_000


def prepare(run_dir: RunDir, reporter: Reporter) -> PreparedManifest:
    """Tokenise and pack the run's rows, unless that is done already. Raises DataError."""
    spec = run_dir.load_spec()
    with contextlib.suppress(OSError, ValueError):  # none yet, or one that a crash left half written
        if (manifest := load_manifest(run_dir.prepared)).made_from == spec.digest_rows():
            return manifest
    reporter.report(PhaseEvent(phase="preparing", message="tokenising the rows"))
    shutil.rmtree(run_dir.prepared, ignore_errors=True)
    run_dir.prepared.mkdir()
    with RowWriter(run_dir.prepared, spec.training) as writer:
        tokenizer = load_tokenizer(spec)
        _write_file(Path(spec.train_path), tokenizer, writer, reporter)
        num_train = len(writer)
        if spec.validation.path:
            _write_file(Path(spec.validation.path), tokenizer, writer, reporter)
    manifest = writer.manifest
    train, validation = _split(writer.lines, num_train, spec)
    if len(train) == 0:
        raise _describe_nothing_left(manifest, spec.training.max_seq_len)
    manifest.train_rows, manifest.validation_rows = len(train), len(validation)
    manifest.train_sequences = _save_rows(run_dir.prepared, "train", train, writer.lengths, spec)
    manifest.validation_sequences = _save_rows(run_dir.prepared, "validation", validation, writer.lengths, spec)
    _report_counts(manifest, spec, reporter)
    _report_overlap(spec, set(writer.lines[validation].tolist()), reporter)
    report = _build_report(writer, tokenizer, spec)
    write_file(run_dir.prepared / REPORT_FILE, report.model_dump_json())
    manifest.sha256, manifest.made_from = _hash_rows(run_dir.prepared), spec.digest_rows()
    write_file(run_dir.prepared / "manifest.json", manifest.model_dump_json(indent=1))
    return manifest


def _build_report(writer: RowWriter, tokenizer: Any, spec: RunSpec) -> RowReport:
    counts = writer.manifest.model_dump(include=RowReport.model_fields.keys() - {"lengths"})
    return RowReport(
        max_seq_len=spec.training.max_seq_len,
        truncation=spec.training.truncation,
        trained_tokens=writer.manifest.supervised_tokens,
        lengths=dict(sorted(writer.lengths_before.lengths.items())),
        too_long_rows=writer.lengths_before.too_long_rows,
        sample=[build_sample_row(tokenizer, *row) for row in writer.first_rows],
        **counts,
    )


def _hash_rows(prepared: Path) -> str:
    digest = hashlib.sha256()
    for name in ("tokens.bin", "mask.bin"):
        with (prepared / name).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _write_file(path: Path, tokenizer: Any, writer: RowWriter, reporter: Reporter) -> None:
    rows = _render_rows(path, tokenizer, writer.manifest)
    for index, batch in enumerate(_cut_into_batches(rows)):
        texts = tokenize(tokenizer, [text for _, text in batch])
        if index == 0 and len(writer) == 0 and not count_stopped_answers(texts, list_stop_tokens(tokenizer)):
            reporter.report(_describe_endless_answers())
        for (line, _), text in zip(batch, texts, strict=True):
            writer.write(text, line=line)


def _render_rows(path: Path, tokenizer: Any, manifest: PreparedManifest) -> Iterator[tuple[int, RenderedText]]:
    for line, row in iter_rows(path):
        if isinstance(row, RowError):
            raise DataError(row.code, _name_line(line, row.message), line=line)
        try:
            texts = render(tokenizer, row)
        except DataError as error:
            raise DataError(error.code, _name_line(line, error.message), remedy=error.remedy, line=line) from None
        manifest.unrolled_rows += len(texts) > 1
        yield from ((line, text) for text in texts)


def _name_line(line: int, message: str) -> str:
    return f"Line {line}: {message}" if line else message


def _cut_into_batches(rows: Iterable[tuple[int, RenderedText]]) -> Iterator[list[tuple[int, RenderedText]]]:
    batch, num_characters = [], 0
    for row in rows:
        batch.append(row)
        num_characters += len(row[1].text)
        if len(batch) == _TEXTS_PER_BATCH or num_characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _split(lines: IntArray, num_train: int, spec: RunSpec) -> tuple[IntArray, IntArray]:
    """Rows to train on and to hold out; a fraction is drawn by the run's seed and leaves both sides something.

    What was one line of the file stays together, on one of the sides.
    """
    train, validation = np.arange(num_train), np.arange(num_train, len(lines))
    line_of = lines[:num_train]
    drawn = np.random.default_rng(spec.training.seed).permutation(np.unique(line_of))
    if spec.validation.fraction is None or len(drawn) < 2:
        return train, validation
    num_held_out = min(max(1, round(len(drawn) * spec.validation.fraction)), len(drawn) - 1)
    is_held_out = np.isin(line_of, drawn[:num_held_out])
    return train[~is_held_out], np.concatenate([train[is_held_out], validation])


def _save_rows(folder: Path, name: str, rows: IntArray, lengths: IntArray, spec: RunSpec) -> int:
    """Returns the number of sequences that the rows are packed into."""
    sequences = arrange_rows(lengths, rows, max_seq_len=spec.training.max_seq_len, packing=spec.training.packing)
    np.save(folder / f"{name}.npy", rows)
    sequences.save(folder, name)
    return len(sequences)


def _report_counts(manifest: PreparedManifest, spec: RunSpec, reporter: Reporter) -> None:
    counts = manifest.model_dump()
    log.info("prepared %s", " ".join(f"{name}={count}" for name, count in counts.items()))
    longer = f"rows are longer than max_seq_len = {spec.training.max_seq_len} tokens and were"
    notices = [
        ("rows_dropped", manifest.dropped_rows, f"{longer} left out."),
        ("rows_truncated", manifest.truncated_rows, f"{longer} cut."),
        ("rows_split", manifest.split_rows, f"{longer} cut into several; a part does not see the one before."),
        (
            "conversations_unrolled",
            manifest.unrolled_rows,
            "conversations became a row for each answer: the chat template rewrites earlier turns.",
        ),
    ]
    for code, count, message in notices:
        if count:
            reporter.report(NoticeEvent(code=code, message=f"{count} {message}", details=counts))


def _report_overlap(spec: RunSpec, validation_lines: set[int], reporter: Reporter) -> None:
    """Rows that are trained on and validate too: the loss on them tells nothing."""
    if not validation_lines:
        return
    held_out = Path(spec.validation.path) if spec.validation.path else validation_lines
    overlap = find_validation_overlap(Path(spec.train_path), held_out)
    if overlap.rows_found:
        message = (
            f"{overlap.rows_found} of {overlap.rows} rows to train on are, or nearly are, rows that validate too: "
            "the validation loss is lower than on new rows. `medtune dedup` takes them out."
        )
        details = overlap.model_dump(include={"counts", "findings", "truncated"})
        reporter.report(NoticeEvent(code="validation_overlap", message=message, details=details))


def _describe_endless_answers() -> NoticeEvent:
    return NoticeEvent(
        code="stop_token_not_trained",
        message="The chat template ends answers without a special token: the model does not learn to stop. "
        "Use a template that puts the end-of-sequence token behind an answer, for example chat_template='plain'.",
    )


def _describe_nothing_left(manifest: PreparedManifest, limit: int) -> DataError:
    if manifest.dropped_rows == 0:
        return DataError("no_rows", "The training file holds no rows.", remedy="Upload a file with rows.")
    return DataError(
        "all_rows_too_long",
        f"Every row is longer than max_seq_len = {limit} tokens; the longest has {manifest.longest_row_tokens}.",
        remedy="Raise max_seq_len, or set truncation to 'truncate' or 'split'.",
        **manifest.model_dump(),
    )
