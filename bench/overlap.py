"""What the search for duplicates finds, and how fast. Run: python -m bench.overlap [--rows N] [--real FILE].

Rows of made-up words, about as long as questions and answers of consumers' health sites; one in eleven is an edited
copy of the one before it, by a known kind and number of edits. With `--real`, rows of a file are edited likewise too.

- `recall_*`: of the copies of a kind, those that were found with their original. `exact`: other case, white space and
  width. `answer_N`: N % of the answer's words replaced. `long_N`: of question and answer, where the question is long.
- `precision`: of all near duplicates that were named, those that are copies of 10 % or less.
- `told_apart_*`: of the copies that are no duplicates, those that were not named. `answer`: the same question, another
  answer. `question`: a word of a short question replaced. `number`: a number replaced. `rewritten`: 30 % of the words.
- `recall_benchmark`, `recall_probe`: of the rows that hold a question of a benchmark, or a safety probe, those found.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.report import write_result
from trainer_core.data.overlap.item_index import ItemIndex
from trainer_core.data.overlap.items import iter_benchmarks, iter_probes
from trainer_core.data.overlap.report import OverlapReport
from trainer_core.data.overlap.search import find_overlap
from trainer_core.safety.probes import load_probes

SEED = 20_261_123
ROWS = 100_000
_EVERY = 10
_SYLLABLES = "ba ce di fo gu ha ke li mo nu pa re si to va xe zi al en or ist um ium itis osis emia oma ase".split()
Row = dict[str, str]
Label = tuple[str, int]
"""Kind of a copy, and the place of its original."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--real", type=Path, help="rows with instruction and response")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), make_rows(options.rows))
        if options.real:
            rows = [json.loads(line) for line in options.real.read_text(encoding="utf-8").splitlines()]
            found = measure(Path(folder), rows)
            figures |= {f"real_{name}": value for name, value in found.items() if name != "peak_mib"}
    write_result("overlap", figures)


def make_rows(num_rows: int) -> Iterator[Row]:
    rng = random.Random(SEED)
    words = [make_word(rng) for _ in range(20_000)]
    frequencies = [1 / rank for rank in range(1, len(words) + 1)]
    many = iter(lambda: rng.choices(words, frequencies, k=10_000), None)
    stream = (word for batch in many for word in batch)
    for _ in range(num_rows):
        question = [next(stream) for _ in range(rng.choice((6, 8, 10, 14, 80)))]
        answer = [next(stream) for _ in range(max(3, min(800, int(rng.lognormvariate(4.9, 0.7)))))]
        for text in (question, answer):
            text[rng.randrange(len(text))] = str(rng.randrange(2, 500))
        yield {"instruction": " ".join(question) + "?", "response": " ".join(answer) + "."}


def make_word(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3, 3, 4))))


def measure(folder: Path, rows: Iterator[Row] | list[Row]) -> dict[str, float]:
    path, benchmark = folder / "rows.jsonl", folder / "benchmark.jsonl"
    labels, num_items = write_rows(path, benchmark, rows)
    started, used = time.perf_counter(), time.process_time()
    items = ItemIndex([*iter_probes(), *iter_benchmarks([benchmark])])
    report, _ = find_overlap(path, items=items, max_findings=10**9)
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    figures = {
        "rows": report.rows,
        "megabytes": path.stat().st_size / 1e6,
        "benchmark_items": num_items,
        "rows_per_second": report.rows / seconds,
        "rows_per_processor_second": report.rows / processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return figures | judge(report, labels)


def write_rows(path: Path, benchmark: Path, rows: Iterator[Row] | list[Row]) -> tuple[dict[int, Label], int]:
    """The file, with copies among its rows; what each of them is, by its place; and a benchmark's questions."""
    rng = random.Random(SEED)
    vocabulary = [make_word(rng) for _ in range(5000)]
    probes = [probe.messages[-1].content for probe in load_probes().probes]
    labels: dict[int, Label] = {}
    kinds = list(_EDITS)
    place = num_items = 0
    with path.open("w", encoding="utf-8") as file, benchmark.open("w", encoding="utf-8") as questions:
        for index, row in enumerate(rows):
            place += 1
            file.write(json.dumps({key: row[key] for key in ("instruction", "response")}, ensure_ascii=False) + "\n")
            if index % _EVERY:
                continue
            kind = kinds[index // _EVERY % len(kinds)]
            copy = _EDITS[kind](row, rng, vocabulary)
            if copy is None:
                continue
            if kind == "benchmark":
                questions.write(json.dumps({"question": row["instruction"]}) + "\n")
                num_items += 1
                labels[place] = ("benchmark", 0)
                continue
            if kind == "probe":
                copy["instruction"] += " " + rng.choice(probes)
            place += 1
            labels[place] = (kind, place - 1)
            file.write(json.dumps(copy, ensure_ascii=False) + "\n")
    return labels, num_items


def judge(report: OverlapReport, labels: dict[int, Label]) -> dict[str, float]:
    found: dict[int, set[tuple[str, int | None]]] = {}
    for finding in report.findings:
        for row in finding.rows:
            found.setdefault(row, set()).add((finding.code, finding.source_row))
    totals, hits = Counter(kind for kind, _ in labels.values()), Counter[str]()
    for place, (kind, original) in labels.items():
        codes = found.get(place, set())
        if kind in ("benchmark", "probe"):
            hits[kind] += any(code == f"{kind}_overlap" for code, _ in codes)
        elif kind == "exact":
            hits[kind] += ("duplicate_row", original) in codes
        elif kind in _NO_DUPLICATES:
            hits[kind] += not {code for code, _ in codes} & {"duplicate_row", "near_duplicate_row"}
        else:
            hits[kind] += ("near_duplicate_row", original) in codes
    near = [(place, code[1]) for place, codes in found.items() for code in codes if code[0] == "near_duplicate_row"]
    right = [labels.get(place) in [(kind, original) for kind in _NEAR] for place, original in near]
    prefix = {kind: "told_apart" if kind in _NO_DUPLICATES else "recall" for kind in totals}
    return {f"{prefix[kind]}_{kind}": hits[kind] / totals[kind] for kind in _EDITS if totals[kind]} | {
        "near_duplicates": len(near),
        "precision": sum(right) / max(1, len(right)),
        "labelled": sum(totals.values()),
    }


Edit = Callable[[Row, random.Random, list[str]], Row | None]


def replace_words(text: str, percent: int, rng: random.Random, vocabulary: list[str]) -> str | None:
    """At least one word, never a number; None where the text has no words enough."""
    words = text.split()
    places = [place for place, word in enumerate(words) if not any(letter.isdigit() for letter in word)]
    wanted = round(len(words) * percent / 100)
    if not 1 <= wanted <= len(places):
        return None
    for place in rng.sample(places, wanted):
        words[place] = rng.choice(vocabulary)
    return " ".join(words)


def _edit_exactly(row: Row, rng: random.Random, _: list[str]) -> Row:
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in row["instruction"])
    return {"instruction": rng.choice((wide, row["instruction"].upper())), "response": f"  {row['response']}\n"}


def _edit_answer(percent: int) -> Edit:
    def edit(row: Row, rng: random.Random, vocabulary: list[str]) -> Row | None:
        answer = replace_words(row["response"], percent, rng, vocabulary)
        return None if answer is None else {"instruction": row["instruction"].rstrip("?. ") + " ?", "response": answer}

    return edit


def _edit_both(percent: int) -> Edit:
    def edit(row: Row, rng: random.Random, vocabulary: list[str]) -> Row | None:
        texts = [replace_words(row[key], percent, rng, vocabulary) for key in ("instruction", "response")]
        if None in texts or len(row["instruction"].split()) < 40:
            return None
        return dict(zip(("instruction", "response"), map(str, texts), strict=True))

    return edit


def _answer_otherwise(row: Row, rng: random.Random, vocabulary: list[str]) -> Row | None:
    return {"instruction": row["instruction"], "response": " ".join(rng.choices(vocabulary, k=60))}


def _ask_otherwise(row: Row, rng: random.Random, vocabulary: list[str]) -> Row | None:
    words = row["instruction"].split()
    if not 1 < len(words) < 40:
        return None
    words[rng.randrange(len(words) - 1)] = rng.choice(vocabulary)
    return {"instruction": " ".join(words), "response": row["response"]}


def _change_number(row: Row, _: random.Random, __: list[str]) -> Row | None:
    number = next((word for word in row["response"].split() if word.isdigit()), None)
    if number is None:
        return None
    return {"instruction": row["instruction"], "response": row["response"].replace(number, str(int(number) + 1000), 1)}


_NEAR: dict[str, Edit] = {
    **{f"answer_{percent}": _edit_answer(percent) for percent in (2, 5, 10)},
    **{f"long_{percent}": _edit_both(percent) for percent in (2, 5)},
}
_NO_DUPLICATES: dict[str, Edit] = {
    "answer": _answer_otherwise,
    "question": _ask_otherwise,
    "number": _change_number,
    "rewritten": _edit_answer(30),
}
_EDITS: dict[str, Edit] = {
    "exact": _edit_exactly,
    **_NEAR,
    **_NO_DUPLICATES,
    "benchmark": lambda row, _, __: row,
    "probe": _answer_otherwise,
}


if __name__ == "__main__":
    main()
