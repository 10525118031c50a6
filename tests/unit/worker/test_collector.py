"""Reading a growing log: nothing lost, doubled, torn or too large."""

from pathlib import Path

import pytest

from worker.collector import CHUNK_BYTES, READ_BYTES, FileTail, clean_text, split_chunks


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = FileTail(path)
    assert tail.read_lines() == b""

    path.write_bytes(b"one\ntw")
    assert tail.read_lines() == b"one\n"
    assert tail.read_lines() == b""
    with path.open("ab") as file:
        file.write(b"o\nthree")
    assert tail.read_lines() == b"two\n"
    assert tail.read_lines(to_the_end=True) == b"three"
    assert tail.read_lines(to_the_end=True) == b""


def test_a_line_without_end_does_not_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (3 * CHUNK_BYTES))
    tail = FileTail(path)

    pieces = [tail.read_lines() for _ in range(4)]

    assert [len(piece) for piece in pieces] == [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 0]


def test_a_large_log_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    content = b"".join(b"line %d\n" % n for n in range(1_200_000))
    path.write_bytes(content)
    tail = FileTail(path)

    pieces = []
    while piece := tail.read_lines(to_the_end=True):
        pieces.append(piece)

    assert b"".join(pieces) == content
    assert max(len(piece) for piece in pieces) <= READ_BYTES


def test_chunks_are_bounded_and_cut_at_line_ends() -> None:
    data = b"".join(b"%06d\n" % n for n in range(50_000)) + b"y" * (CHUNK_BYTES + 5)

    chunks = split_chunks(data)

    assert b"".join(chunks) == data
    assert max(len(chunk) for chunk in chunks) <= CHUNK_BYTES
    assert all(chunk.endswith(b"\n") for chunk in chunks[:5])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\0b", "ab"),
        (b"\xff", "�"),
        (b" 1%\r50%\r100%\n", "100%\n"),
        (b"windows\r\n", "windows\r\n"),
        ("grün\n".encode(), "grün\n"),
    ],
)
def test_text_is_cleaned_for_the_database(data: bytes, text: str) -> None:
    assert clean_text(data) == text
