"""How fast a dataset is checked, and in how much memory. Run: python -m bench.checks [--mb N ...] [--short-mb N ...].

Files of made-up rows, as in `bench.overlap`, of several sizes; each is checked in a process of its own, by what a
worker calls: validation with the search for identifiers, the search for duplicates, the hashes of the rows.

- `peak_mib_N`: the most memory that the process of the file of N MB ever had; `rows_N`: the rows of the file.
- `peak_mib_short_N`, `rows_short_N`: the same of short rows, of which a megabyte holds ten times as many: memory
  grows with the rows up to the first 200,000 different ones, and no further.
- `mb_per_second` and its parts: of the largest file of long rows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.overlap import SEED, make_rows, make_word
from bench.report import read_figures, write_result
from jobs.models import Dataset
from jobs.settings import Settings
from jobs.status import OverlapPolicy, PhiPolicy
from worker.checks import check_file, hash_rows
from worker.overlap import add_overlap

SIZES, SHORT_SIZES = (50, 200), (30, 60)
"""Megabytes."""
_SHORT_WORDS = 6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, nargs="*", default=SIZES, help="none: keep the figures of the last run")
    parser.add_argument("--short-mb", type=int, nargs="*", default=SHORT_SIZES)
    parser.add_argument("--file", type=Path, help="check this file in this process, and print what it took")
    options = parser.parse_args(arguments)
    if options.file:
        print(json.dumps(measure(options.file)))
        return
    figures = read_figures("checks")
    for size in sorted(options.mb):
        taken = check_rows(size)
        megabytes = taken.pop("megabytes")
        figures |= {f"{name}_{size}": taken.pop(name) for name in ("rows", "peak_mib")}
        figures |= {f"{stage}_mb_per_second": megabytes / seconds for stage, seconds in taken.items()}
        figures["mb_per_second"] = megabytes / sum(taken.values())
    for size in sorted(options.short_mb):
        taken = check_rows(size, is_short=True)
        figures |= {f"{name}_short_{size}": taken[name] for name in ("rows", "peak_mib")}
    write_result("checks", figures)


def check_rows(megabytes: int, *, is_short: bool = False) -> dict[str, float]:
    """In a process of its own; what `measure` returns."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder) / "rows.jsonl", megabytes, is_short=is_short)
        command = [sys.executable, "-m", "bench.checks", "--file", str(path)]
        taken: dict[str, float] = json.loads(subprocess.check_output(command, text=True))
    return taken


def write_file(path: Path, megabytes: int, *, is_short: bool = False) -> Path:
    with path.open("w", encoding="utf-8") as file:
        num_rows = megabytes * 10**6 // 60  # More than it takes: rows come one by one.
        for row in make_short_rows(num_rows) if is_short else make_rows(num_rows):
            if file.tell() >= megabytes * 10**6:
                break
            file.write(json.dumps(row) + "\n")
    return path


def make_short_rows(num_rows: int) -> Iterator[dict[str, str]]:
    """Such as labelled cases: all different, none nearly the same as another."""
    rng = random.Random(SEED)
    words = [make_word(rng) for _ in range(20_000)]
    for number in range(num_rows):
        case = " ".join(rng.choices(words, k=_SHORT_WORDS))
        yield {"instruction": f"Case {number}: {case}?", "response": rng.choice(words)}


def measure(path: Path) -> dict[str, float]:
    """Seconds by stage, and the process's peak."""
    settings = Settings(home=path.parent)
    dataset = Dataset(id="ds", tenant_id="a")
    seconds: dict[str, float] = {}

    def take(stage: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - begun
        return result

    report = take("rows_and_identifiers", lambda: check_file(path, PhiPolicy.REPORT, [], lambda: None))
    take("duplicates", lambda: add_overlap(report, path, OverlapPolicy.REPORT, settings, lambda: None))
    take("hashes", lambda: hash_rows(dataset, path, lambda: None))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**seconds, "rows": report["rows"], "megabytes": path.stat().st_size / 1e6, "peak_mib": peak}


if __name__ == "__main__":
    main()
