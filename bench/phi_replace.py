"""Whether replacement is consistent, and how fast. Run: python -m bench.phi_replace [--replacements N].

Rows of patients, with values that the benchmark knows, are replaced by one worker and by eight. Every token of the
result is held against the value that stood in its place.

- `violations`: values with two tokens, and tokens with two values, within a patient.
- `missed`: values that are not a token in the result.
- `byte_identical`: 1 if the two results are.
- `peak_mib`: of the process that gives the tokens, over what it took before.
"""

import argparse
import datetime
import json
import random
import re
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import phi_values as values
from bench.report import write_result
from trainer_core.data.phi.replacement import Replacer
from trainer_core.data.phi.scanner import scan_text

SEED = 20_261_122
REPLACEMENTS = 1_000_000
_ROWS_PER_PATIENT = 10
_TEMPLATE = "Patient: {name}, MRN: {mrn}, SSN {ssn}. {again} was seen on {date} by Dr. {doctor}. Call {phone}."
_TOKENS = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(_TEMPLATE)))
_TOKEN = re.compile(r"\[[A-Z]+_\d+\]")
_PER_ROW = 9
Truth = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replacements", type=int, default=REPLACEMENTS)
    num_rows = parser.parse_args(arguments).replacements // _PER_ROW + 1
    with tempfile.TemporaryDirectory() as folder:
        write_result("phi_replace", measure(Path(folder), num_rows))


def measure(folder: Path, num_rows: int) -> dict[str, float]:
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row, _ in make_rows(num_rows))
    scan_text("Warm up: Ada Lovelace")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, float] = {"megabytes": path.stat().st_size / 1e6, "rows": num_rows}
    for num_workers in (8, 1):
        started, spent = time.perf_counter(), _measure_processor()
        report = Replacer(patient_key="patient", num_workers=num_workers).replace_file(path, folder / f"{num_workers}")
        figures[f"seconds_{num_workers}"] = time.perf_counter() - started
        figures[f"processor_seconds_{num_workers}"] = _measure_processor() - spent
        if num_workers > 1:
            figures["peak_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    figures["byte_identical"] = int((folder / "1").read_bytes() == (folder / "8").read_bytes())
    figures["replacements"] = sum(report.replaced.values())
    return figures | judge(folder / "1", num_rows)


def _measure_processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def make_rows(num_rows: int) -> Iterator[tuple[dict[str, str], Truth]]:
    """Rows in an order that mixes patients, and what each value is, in one form."""
    rng = random.Random(SEED)
    num_patients = num_rows // _ROWS_PER_PATIENT + 1
    people = [[_make_name(rng), values.make_ssn(rng), values.make_phone(rng)] for _ in range(num_patients)]
    for _ in range(num_rows):
        patient = rng.randrange(num_patients)
        name, ssn, phone = people[patient]
        day = datetime.date(1950, 1, 1) + datetime.timedelta(rng.randrange(25_000))
        doctor, mrn = _make_name(rng), str(rng.randrange(10**7, 10**8))
        written = {
            "name": name,
            "again": rng.choice((name, name.upper())),
            "date": day.isoformat() if rng.random() < 0.5 else f"{day:%B} {day.day}, {day.year}",
            "mrn": mrn,
            "ssn": ssn.replace("-", rng.choice("- ")),
            "doctor": doctor,
            "phone": phone,
        }
        truth = {**written, "again": name, "date": day.isoformat(), "ssn": ssn}
        text = _TEMPLATE.format(**written)
        yield (
            {"patient": f"P{patient:07}", "instruction": text, "response": f"MRN {mrn}"},
            truth | {"patient": f"P{patient:07}"},
        )


def _make_name(rng: random.Random) -> str:
    """Two words, so that nobody's name is a part of another's."""
    while len(name := values.make_name(rng).split()) != 2:
        pass
    return " ".join(name)


def judge(path: Path, num_rows: int) -> dict[str, float]:
    """Tokens against the values in whose places they stand."""
    tokens: dict[tuple[str, str, str], str] = {}
    owners: dict[tuple[str, str], tuple[str, str]] = {}
    missed = violations = 0
    with path.open(encoding="utf-8") as file:
        for line, (_, truth) in zip(file, make_rows(num_rows), strict=True):
            row = json.loads(line)
            match = _TOKENS.fullmatch(row["instruction"])
            found = {**(match.groupdict() if match else {}), "patient": row["patient"]}
            for name, value in truth.items():
                token = found.get(name, "")
                if not _TOKEN.fullmatch(token):
                    missed += 1
                    continue
                label = token[1:].rpartition("_")[0]
                patient = truth["patient"]
                violations += tokens.setdefault((patient, label, value.casefold()), token) != token
                violations += owners.setdefault((patient, token), (label, value.casefold())) != (
                    label,
                    value.casefold(),
                )
    return {"missed": missed, "violations": violations, "distinct_tokens": len(owners)}


if __name__ == "__main__":
    main()
