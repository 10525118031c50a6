"""Rows that are there twice, nearly twice, or also in what judges the model: told by place, never by what they say."""

import json
import random
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trainer_core.data import spill
from trainer_core.data.formats import MAX_ROW_BYTES, parse_record
from trainer_core.data.overlap import search
from trainer_core.data.overlap.cleaning import write_without
from trainer_core.data.overlap.item_index import ItemIndex
from trainer_core.data.overlap.items import Item, iter_benchmarks, iter_probes
from trainer_core.data.overlap.report import OverlapReport
from trainer_core.data.overlap.row_text import normalise, read_row, split_words
from trainer_core.data.overlap.search import find_overlap, find_validation_overlap
from trainer_core.data.overlap.sketches import PERMUTATIONS, sign
from trainer_core.errors import ConfigurationError, DataError
from trainer_core.safety.probes import load_probes

ANSWER = (
    "Most people feel better after a week of rest and plenty of water. See a doctor when the fever stays for more than "
    "three days, when breathing becomes hard, or when the cough brings up blood, since these may be signs of pneumonia."
)
VIGNETTE = (
    "A woman of middle age comes to the clinic with a cough that began in spring and has not gone away since. She has "
    "never smoked, works in a bakery, sleeps badly, and has noticed that her breath whistles on cold mornings. Her "
    "mother had asthma, and her chest is clear today. What is the most likely cause of her cough?"
)


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ask(question: str, answer: str = ANSWER) -> dict[str, object]:
    return {"instruction": question, "response": answer}


def find(folder: Path, *rows: Mapping[str, object], items: ItemIndex | None = None) -> list[tuple[object, ...]]:
    report, _ = find_overlap(write(folder / "rows.jsonl", rows), items=items)
    return list_findings(report)


def list_findings(report: OverlapReport) -> list[tuple[object, ...]]:
    return [(finding.code, finding.rows, finding.source, finding.source_row) for finding in report.findings]


def test_case_white_space_and_unicode_forms_make_no_difference() -> None:
    assert normalise("  What IS\u00a0\n ＡＳＴＨＭＡ？") == "what is asthma?"
    assert normalise("Stra\u00dfe") == normalise("STRASSE")
    assert normalise("caf\u00e9") == normalise("CAFE\u0301")
    assert normalise("asth\u00adma\u200b") == "asthma"
    assert normalise("ﬁve µg") == normalise("FIVE \u03bcg")


def test_words_are_the_same_in_every_script() -> None:
    assert split_words("it's 2.5 mg/day_1, ok?") == ["it", "s", "2", "5", "mg", "day_1", "ok"]
    assert split_words("it's 2.5 mg/day_1, ok? \u00e9") == ["it", "s", "2", "5", "mg", "day_1", "ok", "\u00e9"]
    assert split_words("喘息とは") == ["喘", "息", "と", "は"]
    assert split_words("что такое астма?") == ["что", "такое", "астма"]


def test_equal_rows_of_every_format_are_one_cluster_that_names_the_first(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "WHAT  helps?"}, {"role": "assistant", "content": ANSWER}]
    rows: list[dict[str, object]] = [
        ask("What helps?"),
        ask("What hurts?"),
        {"prompt": "what helps?", "completion": ANSWER},
        {"messages": messages},
    ]

    assert find(tmp_path, *rows) == [("duplicate_row", [3, 4], None, 1)]


def test_the_same_question_with_another_answer_is_no_duplicate(tmp_path: Path) -> None:
    other = "Honey helps against a cough, and so does warm tea; antibiotics do nothing against a virus."

    assert find(tmp_path, ask("What helps?"), ask("What helps?", other)) == []
    assert find(tmp_path, ask(VIGNETTE, "Yes"), ask(VIGNETTE, "No")) == []
    assert find(tmp_path, ask("Is it safe?", "Yes"), ask("Is it safe?", "No"), ask("Is it safe?", "yes")) == [
        ("duplicate_row", [3], None, 1)
    ]


def test_the_same_answer_to_another_question_is_no_duplicate(tmp_path: Path) -> None:
    pairs = [
        ("Is hyperkalemic periodic paralysis inherited?", "Is hypokalemic periodic paralysis inherited?"),
        ("Is glycogen storage disease type VI inherited?", "Is glycogen storage disease type VII inherited?"),
        ("What helps against Hodgkin lymphoma?", "What helps against non-Hodgkin lymphoma?"),
    ]
    for pair in pairs:
        assert find(tmp_path, *map(ask, pair)) == []


def test_small_edits_of_an_answer_are_near_duplicates(tmp_path: Path) -> None:
    edited = ANSWER.replace("plenty of", "much").replace("feel", "get")

    report, rows = find_overlap(write(tmp_path / "rows.jsonl", [ask("What helps?"), ask("what helps", edited)]))

    assert list_findings(report) == [("near_duplicate_row", [2], None, 1)]
    assert 0.7 <= report.findings[0].similarity < 1
    assert rows == {2}


def test_a_long_question_may_be_edited_too(tmp_path: Path) -> None:
    edited = VIGNETTE.replace("a bakery", "a laundry")

    assert find(tmp_path, ask(VIGNETTE), ask(edited)) == [("near_duplicate_row", [2], None, 1)]


def test_an_answer_that_hundreds_of_questions_share_hides_no_near_duplicate(tmp_path: Path) -> None:
    rows = [ask(f"Is illness {'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]} inherited?") for i in range(100)]
    rows.append(ask("is illness JH inherited", ANSWER.replace("plenty of", "much")))

    assert find(tmp_path, *rows) == [("near_duplicate_row", [101], None, 98)]


def test_rows_beyond_the_limit_are_only_compared_for_equality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_SKETCHES", 2)
    edited = ANSWER.replace("plenty of", "much")
    path = write(tmp_path / "rows.jsonl", [ask("Who?"), ask("What?"), ask("Who?", edited), ask("Who?", edited)])

    report, _ = find_overlap(path)

    assert (list_findings(report), report.unsketched_rows) == ([("duplicate_row", [4], None, 3)], 1)
    assert report.near_search_ends_at == 2


def test_equal_rows_beyond_the_limit_are_found_and_counted_as_those_before_it(tmp_path: Path) -> None:
    words = [f"{first}{second}" for first in "abcdefghijklmnopqrst" for second in "abcdefghijklmnopqrst"]
    rows = [ask(f"What is {word}?", word) for word in [*words, *words[::2], *words[::4]]]
    path = write(tmp_path / "rows.jsonl", rows)

    whole, found = find_overlap(path, max_findings=20)
    for limit in (0, 100, 399):
        report, also_found = find_overlap(path, max_findings=20, max_sketches=limit, folder=tmp_path)

        assert report.counts == whole.counts == {"duplicate_row": 300}
        assert list_findings(report) == list_findings(whole)
        assert (report.num_findings, report.truncated) == (whole.num_findings, True) == (200, True)
        assert also_found == found
        assert (report.unsketched_rows, report.near_search_ends_at) == (400 - limit, limit)
    assert whole.near_search_ends_at is None
    assert list(tmp_path.iterdir()) == [path]


def test_memory_does_not_grow_with_the_rows_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_BUFFER_BYTES", 256)  # Of each of 256 parts: else so few rows never leave the buffers.
    peaks = []
    for num_rows in (3_000, 12_000):
        rows = [ask(f"What is number {number}?", "A number.") for number in [*range(num_rows), *range(num_rows)]]
        path = write(tmp_path / "rows.jsonl", rows)
        del rows
        tracemalloc.start()
        try:
            report, found = find_overlap(path, max_findings=10, max_sketches=100)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (len(found), report.num_findings) == (num_rows, num_rows)
        peaks.append(peak)

    assert peaks[1] < peaks[0] + 18_000 * 5  # Where each is remembered, it takes a hundred bytes and more.


def test_one_long_prompt_with_labels_as_answers_makes_no_duplicates(tmp_path: Path) -> None:
    rows = [ask(f"{VIGNETTE * 3} Text: {text}", "urgent") for text in ("Chest pain", "No pulse", "Blue lips")]

    assert find(tmp_path, *rows) == []


def test_another_number_makes_another_row(tmp_path: Path) -> None:
    doses = [f"{ANSWER} The largest dose for adults is {dose} mg a day." for dose in (400, 4000)]

    assert find(tmp_path, *(ask("What helps?", dose) for dose in doses)) == []


def test_a_system_prompt_that_all_rows_share_makes_none_of_them_alike(tmp_path: Path) -> None:
    system = {"role": "system", "content": VIGNETTE * 3}
    rows = [
        {"messages": [system, {"role": "user", "content": question}, {"role": "assistant", "content": "Rest."}]}
        for question in ("What helps against a cold?", "What helps against the flu?")
    ]

    assert find(tmp_path, *rows) == []


def test_rows_of_one_word_and_of_no_words_are_compared_like_others(tmp_path: Path) -> None:
    rows = [
        ask("Hi", "Hello"),
        ask("Hi", "Hallo"),
        ask("?", "!"),
        ask("hi ", "HELLO"),
        ask("?", "!"),
        ask("Hi!", "Hello"),
    ]

    assert find(tmp_path, *rows) == [
        ("duplicate_row", [4], None, 1),
        ("duplicate_row", [5], None, 3),
        ("near_duplicate_row", [6], None, 1),
    ]


def test_a_huge_row_takes_little_more_memory_than_itself(tmp_path: Path) -> None:
    huge = random.Random(1).randbytes(MAX_ROW_BYTES * 2 // 5).hex()
    path = write(tmp_path / "rows.jsonl", [ask("Read this.", huge), ask("Read this.", huge[:-50] + " and so on")])
    tracemalloc.start()
    try:
        report, _ = find_overlap(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert report.counts == {}  # The second lost digits: another row.
    assert peak < 150 * MAX_ROW_BYTES


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Q"}\n\nno json\n' + json.dumps(ask("Q")) + "\n", encoding="utf-8")

    report, _ = find_overlap(path)

    assert (report.rows, report.unreadable_rows) == (1, 2)


def test_an_empty_file_has_no_findings(tmp_path: Path) -> None:
    report, rows = find_overlap(write(tmp_path / "rows.jsonl", []))

    assert (report.rows, report.findings, rows) == (0, [], set())


def test_findings_are_capped_and_counted_whole(tmp_path: Path) -> None:
    rows = [ask(f"What is {word}?") for word in "abcdefg" for _ in range(30)]

    report, found = find_overlap(write(tmp_path / "rows.jsonl", rows), max_findings=5)

    assert report.counts == {"duplicate_row": 7 * 29}
    assert (report.num_findings, len(report.findings), report.truncated) == (7, 5, True)
    assert (report.findings[0].num_rows, len(report.findings[0].rows)) == (29, 20)
    assert report.rows_found == len(found) == 7 * 29


def test_similarities_are_estimated_without_a_bias() -> None:
    rng = random.Random(3)
    errors = []
    for _ in range(200):
        shared, first, second = (["".join(rng.choices("abcdefghij", k=40)) for _ in range(n)] for n in (30, 10, 10))
        texts = ["".join(rng.sample(shared + own, 40)) for own in (first, second)]
        stretches = [{text[place : place + 5] for place in range(len(text) - 4)} for text in texts]
        truth = len(stretches[0] & stretches[1]) / len(stretches[0] | stretches[1])
        errors.append((sign(texts[0]) == sign(texts[1])).mean() - truth)

    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(map(abs, errors)) < 5 * 0.5 / PERMUTATIONS**0.5


def test_rows_that_validate_are_named_with_their_place_in_the_other_file(tmp_path: Path) -> None:
    edited = ANSWER.replace("plenty of", "much")
    path = write(tmp_path / "rows.jsonl", [ask("What helps?"), ask("What hurts?"), ask("Who helps?", edited)])
    held_out = write(tmp_path / "held_out.jsonl", [ask("Who helps?"), ask("WHAT HURTS?"), ask("Why?")])

    report, rows = find_overlap(path, validation=held_out)

    assert list_findings(report) == [
        ("validation_overlap", [2], "held_out.jsonl", 2),
        ("validation_overlap", [3], "held_out.jsonl", 1),
    ]
    assert rows == {2, 3}
    assert list_findings(find_validation_overlap(path, held_out)) == list_findings(report)


def test_rows_of_one_file_that_were_split_apart_are_compared_likewise(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [ask("What helps?"), ask("What hurts?"), ask("what helps?"), ask("Why?")] * 2)

    report = find_validation_overlap(path, [2, 3])

    assert report.counts == {"validation_overlap": 4}
    assert list_findings(report) == [
        ("validation_overlap", [1, 5, 7], None, 3),
        ("validation_overlap", [6], None, 2),
    ]


# --- Benchmarks and probes ---


def index(*texts: str) -> ItemIndex:
    return ItemIndex(Item("benchmark_overlap", "b.jsonl", row, text) for row, text in enumerate(texts, 1))


def test_a_long_question_is_found_inside_another_text_and_with_edits(tmp_path: Path) -> None:
    inside = ask("Please answer.", f"Here is a case: {VIGNETTE.upper()} (A) asthma (B) reflux")
    edited = ask(VIGNETTE.replace("a bakery", "a laundry").replace("clear today", "clear now"))
    half = ask(VIGNETTE[: len(VIGNETTE) // 3])

    assert find(tmp_path, inside, edited, half, items=index(VIGNETTE)) == [("benchmark_overlap", [1, 2], "b.jsonl", 1)]


def test_a_question_of_eight_words_must_be_there_word_by_word(tmp_path: Path) -> None:
    items = index("Which drug lowers blood pressure in pregnant women safely?")
    rows = [ask("Tell me: which drug lowers blood pressure in pregnant women safely, doctor?")]
    rows += [ask("Which drug lowers blood pressure in pregnant women quickly?")]

    assert find(tmp_path, *rows, items=items) == [("benchmark_overlap", [1], "b.jsonl", 1)]


def test_a_short_question_must_be_all_that_is_asked(tmp_path: Path) -> None:
    rows = [ask("what is asthma"), ask("My son asks: what is asthma?"), ask("What next?", "What is asthma?")]

    assert find(tmp_path, *rows, items=index("What is asthma?")) == [("benchmark_overlap", [1], "b.jsonl", 1)]


def test_how_many_questions_begin_tells_nothing(tmp_path: Path) -> None:
    stem = "Which of the following is the most likely diagnosis in a patient with a history of {}?"
    items = index(*(stem.format(f"disease {number} of the left {number}") for number in range(40)))

    assert find(tmp_path, ask(stem.format("something else")), items=items) == []
    assert find(tmp_path, ask(stem.format("disease 7 of the left 7")), items=items) != []


def test_every_probe_is_found_where_it_is_asked_and_nothing_where_it_is_not(tmp_path: Path) -> None:
    items, probes = ItemIndex(iter_probes()), load_probes().probes
    for probe in probes:
        matches = items.find(read_row(parse_record(ask(f"  {probe.messages[-1].content.upper()} "))))
        assert probe.id in [match.item.source for match in matches]
    assert items.count_sources() == {"safety probes": len(probes)}
    assert find(tmp_path, ask(VIGNETTE), ask("What helps against a cough?"), items=items) == []


def test_benchmarks_come_as_jsonl_csv_parquet_and_text(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "benchmarks"
    (folder / "deep").mkdir(parents=True)
    write(folder / "a.jsonl", [{"id": 7, "question": "What is asthma?", "options": {"A": "An illness"}}])
    (folder / "b.csv").write_text(
        "id,Question,answer\n1,What is gout?,An illness of joints and more\n", encoding="utf-8"
    )
    (folder / "c.csv").write_text("What is the flu?,a,b,c,A\nWhat is a cold?,a,b,c,B\n", encoding="utf-8")
    (folder / "deep" / "d.txt").write_text("\ufeffWhat is\tmumps?\n\nWhat is polio?\n", encoding="utf-8")
    write(
        folder / "e.jsonl", [{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "A"}]}]
    )
    table = pyarrow.table({"QUESTION": ["What is croup?"], "CONTEXTS": [["A long text that is no question"]]})
    parquet.write_table(table, folder / "f.parquet")
    (folder / "README.md").write_text("What is rabies?", encoding="utf-8")

    items = list(iter_benchmarks([folder]))

    assert [(item.source, item.row, item.text.strip()) for item in items] == [
        ("a.jsonl", 1, "What is asthma?"),
        ("b.csv", 2, "What is gout?"),
        ("c.csv", 1, "What is the flu?"),
        ("c.csv", 2, "What is a cold?"),
        ("deep/d.txt", 1, "What is\tmumps?"),
        ("deep/d.txt", 3, "What is polio?"),
        ("e.jsonl", 1, "Hi?"),
        ("f.parquet", 1, "What is croup?"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b"{no\n"), ("a.csv", b"question\n\xff\n"), ("a.parquet", b"PAR1"), ("a.txt", b"\xff")],
)
def test_a_benchmark_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigurationError, match=name) as caught:
        list(iter_benchmarks([tmp_path]))
    assert caught.value.code == "benchmark_unreadable"
    assert caught.value.remedy


def test_a_folder_without_a_file_to_compare_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("?")

    with pytest.raises(ConfigurationError) as caught:
        list(iter_benchmarks([tmp_path]))
    assert caught.value.code == "no_benchmark_file"


def test_no_finding_repeats_what_a_row_says(tmp_path: Path) -> None:
    items = ItemIndex([*iter_probes(), Item("benchmark_overlap", "b.jsonl", 1, "Why does Zebulon cough?")])
    rows = [ask("Why does Zebulon cough?", "Zebulon smokes."), ask("why does zebulon cough?", "Zebulon smokes.")]

    report, _ = find_overlap(write(tmp_path / "rows.jsonl", rows), items=items)

    assert report.counts == {"duplicate_row": 1, "benchmark_overlap": 2}
    assert "zebulon" not in report.model_dump_json().lower()


# --- What is left ---


def test_the_rows_that_stay_keep_their_bytes_and_their_order(tmp_path: Path) -> None:
    lines = [
        '{"instruction":"Ä", "response": "\\u00e4"}',
        "",
        '{"b": 1, "instruction": "Q", "response": "A"}',
        '{"prompt": "Q", "completion": "A"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")

    assert write_without(path, {4}, tmp_path / "clean.jsonl") == 2
    assert (tmp_path / "clean.jsonl").read_text(encoding="utf-8") == lines[0] + "\n" + lines[2] + "\n"
    with pytest.raises(FileExistsError):
        write_without(path, {4}, tmp_path / "clean.jsonl")


def test_nothing_is_written_where_nothing_would_be_left(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [ask("Q")])

    with pytest.raises(DataError) as caught:
        write_without(path, {1}, tmp_path / "clean.jsonl")
    assert caught.value.code == "no_rows_left"
    assert not (tmp_path / "clean.jsonl").exists()
