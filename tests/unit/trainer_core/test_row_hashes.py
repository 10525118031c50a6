"""Hashes of rows: the same for the same row, whatever its spaces, the order of its keys and the order of the rows."""

import hashlib
from pathlib import Path

import pytest

from trainer_core.data.formats import RowError
from trainer_core.data.row_hashes import HashedRows, hash_row, iter_row_hashes

ROW = {"instruction": "Grüße", "response": "b"}
CANONICAL = b'{"instruction":"Gr\\u00fc\\u00dfe","response":"b"}'


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_rows_hash_is_that_of_its_canonical_json() -> None:
    assert hash_row(ROW) == hashlib.sha256(CANONICAL).digest()
    assert hash_row(dict(reversed(ROW.items()))) == hash_row(ROW)
    assert hash_row({**ROW, "response": "B"}) != hash_row(ROW)
    assert hash_row({"instruction": "\ud800"}) != hash_row({"instruction": "\ud801"})


def test_spaces_order_and_formats_of_files_do_not_change_the_digest(tmp_path: Path) -> None:
    first = write(tmp_path / "a", '{"instruction": "a", "response": "b"}', '{"instruction":"c","response":"d"}')
    second = write(tmp_path / "b", '{"response": "d", "instruction": "c"}', "", '{"instruction": "a", "response":"b"}')
    table = write(tmp_path / "c", "instruction,response", "c,d", "a,b")
    less = write(tmp_path / "d", '{"instruction": "a", "response": "b"}')

    digests = [HashedRows(iter_row_hashes(path)).compute_digest() for path in (first, second, table, less)]

    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_shards_hold_every_hash_once_for_each_row_in_order() -> None:
    hashes = [hash_row({"n": number % 900}) for number in range(1000)]

    rows = HashedRows(hashes)

    shards = dict(rows.iter_shards())
    together = b"".join(shards.values())
    assert [together[at : at + 32] for at in range(0, len(together), 32)] == sorted(hashes)
    assert all(shard[0] == number for number, shard in shards.items())


def test_hashes_beyond_what_is_buffered_come_back_whole() -> None:
    hashes = [hash_row({"n": number}) for number in range(100_000)]

    rows = HashedRows(iter(hashes))

    assert rows.compute_digest() == hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def test_a_row_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(RowError):
        list(iter_row_hashes(write(tmp_path / "a", '{"instruction": "a", "response": "b"}\n{"instruction"')))
