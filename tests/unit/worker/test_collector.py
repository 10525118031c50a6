"""Reading a growing log: nothing lost, doubled, torn or too large."""

import time
from pathlib import Path

import pytest

from jobs.models import Attempt
from trainer_core.reporting import MetricsEvent, Reporter
from trainer_core.run_dir import RunDir
from worker.collector import CHUNK_BYTES, READ_BYTES, Collector, FileTail, clean_text, split_chunks


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


def test_a_line_without_an_end_is_cleaned_at_once() -> None:
    """Searched from each of its bytes it took many seconds, in which no lease was renewed."""
    started = time.monotonic()

    assert clean_text(b"x" * CHUNK_BYTES) == "x" * CHUNK_BYTES
    assert clean_text(b"x" * CHUNK_BYTES + b"\r100%\n") == "100%\n"
    assert time.monotonic() - started < 1


def attempt(log_offset: int = 0, events_offset: int = 0) -> Attempt:
    return Attempt(job_id="job_1", number=1, log_offset=log_offset, events_offset=events_offset)


def test_a_second_collector_goes_on_where_the_table_ends(tmp_path: Path) -> None:
    """As after the death of a worker: without a gap, without a double, from the middle of what its file holds."""
    run_dir = RunDir(tmp_path)
    run_dir.log.write_bytes("eins\nzwei grün\n".encode())
    reporter = Reporter(run_dir.events)
    progress = {"max_steps": 3, "epoch": 0.5, "values": {"loss": 1.0}}
    reporter.report(MetricsEvent(step=1, tokens=5, **progress))
    first = Collector(run_dir, attempt(), (0, 0))
    assert first.collect(to_the_end=True)
    stored = first.take_news()
    assert stored.offsets is not None
    with run_dir.log.open("ab") as log:
        log.write(b"drei\nvier ohne Ende")
    reporter.report(MetricsEvent(step=2, tokens=9, **progress))
    reporter.close()

    second = Collector(run_dir, attempt(*stored.offsets), (1, 1))
    assert second.collect(to_the_end=True)
    rest = second.take_news()

    assert [chunk["text"] for chunk in stored.log_chunks + rest.log_chunks] == [
        "eins\nzwei grün\n",
        "drei\nvier ohne Ende",
    ]
    assert [(row["seq"], row["step"]) for row in stored.metrics + rest.metrics] == [(1, 1), (2, 2)]
    assert [chunk["seq"] for chunk in rest.log_chunks] == [2]
    assert not second.collect(to_the_end=True)


def test_events_that_no_table_could_hold_do_no_harm(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    lines = [
        '{"type": "notice", "code": "x", "message": "a\\u0000b"}',
        '{"type": "metrics", "step": 99999999999999999999, "max_steps": 1, "epoch": 1, "tokens": 1, "values": {}}',
        '{"type": "metrics", "step": 1, "max_steps": 1, "epoch": 1, "tokens": 1, "values": {"loss": NaN, "lr": 1.0}}',
        '{"type": "notice", "code": "long", "message": "' + "x" * CHUNK_BYTES * 2 + '"}',
        "no event at all",
    ]
    run_dir.events.write_text("\n".join(lines) + "\n")
    collector = Collector(run_dir, attempt(), (0, 0))

    assert collector.collect()
    news = collector.take_news()

    assert [event["data"]["code"] for event in news.events] == ["x", "long"]
    assert news.events[0]["message"] == "ab"
    assert [(row["seq"], row["values"]) for row in news.metrics] == [(1, {"lr": 1.0})]
