"""Items: what a model is judged by, the questions of benchmarks and the safety probes."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from trainer_core.data.overlap.benchmark_files import iter_questions, list_benchmark_files
from trainer_core.safety.probes import load_probes


class Item(NamedTuple):
    """A question of a benchmark, or of a safety probe."""

    code: Literal["benchmark_overlap", "probe_overlap"]
    source: str
    """The file's name, within its folder; or the probe's id."""
    row: int | None
    text: str


def iter_probes() -> Iterator[Item]:
    """What the user says in each of the package's probes."""
    for probe in load_probes().probes:
        for message in probe.messages:
            if message.role == "user":
                yield Item("probe_overlap", probe.id, None, message.content)


def iter_benchmarks(paths: Iterable[Path]) -> Iterator[Item]:
    """The questions of files, and of the files in folders. Raises ConfigurationError and OSError."""
    for path in paths:
        for file in list_benchmark_files(path):
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            yield from (Item("benchmark_overlap", name, row, text) for row, text in iter_questions(file))
