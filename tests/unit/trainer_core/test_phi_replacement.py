"""Identifiers become placeholders: the same value the same one, two values two, and everything else stays."""

import json
import os
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.phi_sentences import make_samples
from trainer_core.data.phi.fields import iter_texts
from trainer_core.data.phi.json_text import parse_row
from trainer_core.data.phi.replacement import ReplacementReport, Replacer
from trainer_core.data.phi.scanner import scan_record
from trainer_core.data.phi.site_patterns import load_site_patterns
from trainer_core.data.phi.strategy import Strategy
from trainer_core.data.phi.vault import Keyring, VaultKey
from trainer_core.errors import ConfigurationError, DataError

KEYRING = Keyring([VaultKey(1, bytes(range(32)))])


def replace(text: str, **options: Any) -> str:
    rows, _ = Replacer(**options).replace_rows([{"instruction": text}])
    return str(rows[0]["instruction"])


def replace_lines(lines: list[str], **options: Any) -> list[str]:
    replacer = Replacer(**options)
    return list(replacer.iter_lines(enumerate(lines, 1), replacer.build_report()))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("Patient: John Smith. Smith coughs.", "Patient: [PATIENT_1]. [PATIENT_1] coughs."),
        ("Patient: Smith, John. JOHN SMITH came.", "Patient: [PATIENT_1]. [PATIENT_1] came."),
        ("Seen March 4, 1961, 1961-03-04 and 4 Mar 1961.", "Seen [DATE_1], [DATE_1] and [DATE_1]."),
        ("Seen 03/04/1961 and 3/4/1961.", "Seen [DATE_1] and [DATE_1]."),
        ("Call (617) 555-0142 or +1 617.555.0142.", "Call [PHONE_1] or [PHONE_1]."),
        ("Phone: 617-555-0142, Fax: 617-555-0142", "Phone: [PHONE_1], Fax: [PHONE_1]"),
        ("Write to Jane@ward.local, jane@WARD.local.", "Write to [EMAIL_1], [EMAIL_1]."),
        ("Write to ja.ne@ward.local, jane@ward.local.", "Write to [EMAIL_1], [EMAIL_2]."),
        ("MRN: 00481516. The chart 00481516 was lost.", "MRN: [MRN_1]. The chart [MRN_1] was lost."),
        ("SSN 219-09-9999, SSN 219 09 9999", "SSN [SSN_1], SSN [SSN_1]"),
        ("a 93-year-old man", "a [AGE_OVER_89]-year-old man"),
        ("born 1931 in poverty", "born [DATE_1] in poverty"),
        ("ZIP: 55802", "ZIP: [ZIP_1]"),
        ("MRN: 0048\u200b1516", "MRN: [MRN_1]"),
        ("MRN: ００４８１５１６, MRN: 00481516", "MRN: [MRN_1], MRN: [MRN_1]"),
        ("שלום \u202eMRN: 00481516\u202c שלום", "שלום \u202eMRN: [MRN_1]\u202c שלום"),
    ],
)
def test_a_value_has_one_token_however_it_is_written(text: str, replaced: str) -> None:
    assert replace(text) == replaced


def test_a_short_name_of_two_people_is_a_third_one() -> None:
    text = "Patient: John Smith. Spouse: Mary Smith. Smith came."

    assert replace(text) == "Patient: [PATIENT_1]. Spouse: [PATIENT_2]. [PATIENT_3] came."


def test_tokens_that_stand_there_are_kept_and_their_numbers_stay_theirs() -> None:
    text = "[PATIENT_1] and [PATIENT_3] met Dr. John Miller, Dr. Mary Johnson; [** Name **] ___"

    assert replace(text) == "[PATIENT_1] and [PATIENT_3] met Dr. [PATIENT_2], Dr. [PATIENT_4]; [** Name **] ___"


def test_the_other_half_of_a_replaced_name_is_replaced_too() -> None:
    assert replace("Then [PATIENT_1] Quillberg came.") == "Then [PATIENT_1] [PATIENT_2] came."


def test_keys_and_values_that_training_ignores_are_replaced() -> None:
    row = {"instruction": "Q", "mrn": 481516, "notes": {"Jane Doe": ["Call (617) 555-0142", {"x": 6175550142}]}}

    rows, report = Replacer().replace_rows([row])

    notes = {"[PATIENT_1]": ["Call [PHONE_1]", {"x": "[PHONE_1]"}]}
    assert rows == [{"instruction": "Q", "mrn": "[MRN_1]", "notes": notes}]
    assert report.replaced == {"mrn": 1, "name": 1, "phone": 2}
    assert report.tokens == 3


def test_every_other_byte_stays() -> None:
    line = (
        '{ "b":1.50e3,"a" : "caf\\u00e9 \\ud83d\\ude00 \\/ MRN: 00481516\\n", "a":"MRN: 00481516",\t"é":[null,-0]}\r\n'
    )

    assert replace_lines([line]) == [line.replace("00481516", "[MRN_1]")]


def test_rows_of_one_patient_share_their_tokens_and_others_do_not() -> None:
    rows = [
        {"instruction": "Patient: John Smith", "patient_id": "P-00017"},
        {"instruction": "Patient: Mary Johnson", "patient_id": "P-00018"},
        {"instruction": "Mr. Smith, MRN: P-00017, with Dr. Miller", "patient_id": "p-00017"},
        {"instruction": "Patient: John Smith"},
        {"instruction": "[PATIENT_2] came", "patient_id": "P-00017"},
    ]

    replaced, report = Replacer(patient_key="patient_id").replace_rows(rows)

    assert [row["instruction"] for row in replaced] == [
        "Patient: [PATIENT_1]",
        "Patient: [PATIENT_1]",
        "Mr. [PATIENT_1], MRN: [MRN_1], with Dr. [PATIENT_3]",
        "Patient: [PATIENT_1]",
        "[PATIENT_2] came",
    ]
    assert [row.get("patient_id") for row in replaced] == ["[MRN_1]", "[MRN_1]", "[MRN_1]", None, "[MRN_1]"]
    assert report.tokens == 6


def test_a_patient_key_that_no_row_has_is_refused() -> None:
    with pytest.raises(DataError, match="patien_id") as caught:
        Replacer(patient_key="patien_id").replace_rows([{"instruction": "x", "patient_id": 1}])

    assert caught.value.code == "patient_key_unknown"


def test_keyed_tokens_are_the_same_in_every_file_and_others_under_another_key() -> None:
    options = {"strategy": Strategy.EXPERT_DETERMINATION, "keyring": KEYRING}
    other = Keyring([VaultKey(1, bytes(32))])

    one, two = replace("Patient: John Smith", **options), replace("Then Dr. Miller met JOHN SMITH.", **options)

    token = one.removeprefix("Patient: ")
    assert token in two
    assert len(token) == len("[PATIENT_]") + 16
    assert replace("Patient: John Smith", strategy=options["strategy"], keyring=other) != one
    assert replace(two, **options) == two


def test_without_a_key_nothing_is_replaced_by_hashes() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Replacer(Strategy.EXPERT_DETERMINATION)

    assert caught.value.code == "vault_key_missing"


def test_classes_of_a_site_have_tokens_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    path.write_text(json.dumps({"patterns": [{"name": "bed", "class": "bed2", "regex": "B-\\d{2}"}]}))
    patterns = load_site_patterns(path)

    replaced = replace("B-17, B-18, B-17", site_patterns=patterns)

    assert replaced == "[BED_1], [BED_2], [BED_1]"
    assert scan_record({"text": replaced}, patterns)["text"] == []


def test_nothing_of_any_identifier_of_the_benchmark_stays() -> None:
    """Of those that the rules find; what they miss, `bench/phi` says."""
    residual = []
    for hard in (False, True):
        for name, samples in make_samples(11, 40, hard=hard).items():
            for sample in samples:
                replaced = replace(sample.text)
                if any(finding.phi_class != "placeholder" for finding in scan_record({"t": replaced})["t"]):
                    residual.append((name, replaced))
                assert replace(replaced) == replaced

    assert residual == []


VALUES = st.sampled_from(
    [
        "John Smith", "Smith", "SMITH, JOHN", "Dr. Zorvan Quillberg", "Mary\u200b Johnson", "MRN: 00481516",
        "00481516", "MRN: 0O481516", "219-09-9999", "(617) 555-0142", "March 4, 1961", "03/04/1961", "１９６１-03-04",
        "93 years old", "Duluth, MN 55802", "12 Old Quarry Road", "jane.roe@ward.local", "https://a.example.org/John",
        "10.20.30.40", "[PATIENT_1]", "[PATIENT_2] Quillberg", "[DATE_1",
        "[** Name **]", "___", "***", "[MRN_7]", "[FOO_1]", "\u202e",
        "Patient:", "Dr.", "lives in", "fax", "aspirin 100 mg", "\n", "the", "seen", ",", "Hodgkin disease",
        "[AGE_OVER_89]", "http://x/[PATIENT_3]/y", "\ud83d", "\x00", "é", "😀", "ward",
    ]
)  # fmt: skip
TEXTS = st.lists(VALUES | st.text(max_size=8), max_size=12).map(" ".join)
JSON = st.recursive(
    TEXTS | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.dictionaries(
    st.sampled_from(["instruction", "response", "mrn", "patient_name", "meta"]) | TEXTS, JSON, max_size=4
)


@given(row=ROWS, ascii_only=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_structure_stays_and_a_second_time_changes_nothing(row: dict[str, Any], ascii_only: bool) -> None:
    line = json.dumps(row, ensure_ascii=ascii_only)

    [replaced] = replace_lines([line])

    assert _describe(json.loads(replaced)) == _describe(json.loads(line)) or _has_equal_keys(replaced)
    assert replace_lines([replaced]) == [replaced]
    fields = {str(i): text.text for i, text in enumerate(iter_texts(parse_row(replaced)))}
    rules = {f.rule for findings in scan_record(fields).values() for f in findings}
    assert {rule for rule in rules if not rule.startswith("PHI01")} == set()


def _describe(value: object) -> object:
    """The shape: numbers may have become texts, and keys other keys."""
    if isinstance(value, dict):
        return [_describe(inner) for inner in value.values()]
    if isinstance(value, list):
        return [_describe(inner) for inner in value]
    return None if value is None or isinstance(value, bool) else "text"


def _has_equal_keys(line: str) -> bool:
    """Two keys were one value: both are still there, though a reader takes one."""
    row = parse_row(line)
    return len({key for key, _ in row}) < len(row) or len(json.dumps(json.loads(line))) < len(json.dumps(row)) - 2


@given(
    people=st.lists(st.text(string.ascii_lowercase, min_size=4, max_size=9), min_size=2, max_size=8, unique=True),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_two_values_have_two_tokens(people: list[str], order: Any) -> None:
    mentions = [f"MRN: {index + 10_000} of {person.title()}x." for index, person in enumerate(people)] * 2
    order.shuffle(mentions)

    replaced = replace(" ".join(mentions))

    tokens = [word for word in replaced.split() if word.startswith("[MRN_")]
    by_value: dict[str, set[str]] = {}
    for mention, token in zip(mentions, tokens, strict=True):
        by_value.setdefault(mention.split()[1], set()).add(token)
    assert all(len(found) == 1 for found in by_value.values())
    assert len(set(tokens)) == len(people)


def test_a_huge_field_full_of_identifiers_is_replaced_in_time() -> None:
    text = " ".join(
        f"MRN: {10_000 + index}, Dr. Zorv{chr(97 + index % 26)}n, a{index}@ward.local" for index in range(4_000)
    )

    replaced = replace(text)

    assert "[MRN_4000]" in replaced
    assert "@" not in replaced


def test_deep_rows_are_replaced() -> None:
    row: Any = "MRN: 00481516"
    for _ in range(300):
        row = [{"a": row}]

    [line] = replace_lines([json.dumps({"instruction": row})])

    assert "[MRN_1]" in line


def test_a_file_is_the_same_for_one_and_eight_workers(tmp_path: Path) -> None:
    rows = [
        {
            "patient": f"P{index % 41:04}",
            "instruction": f"Patient: John Zorv{chr(97 + index % 26)}l, MRN: {10_000 + index % 7}",
            "response": f"Seen 0{1 + index % 9}/04/1961 with [PATIENT_{index % 5}]",
        }
        for index in range(400)
    ]
    path = write(tmp_path / "rows.jsonl", rows)

    reports = [
        Replacer(patient_key="patient", num_workers=workers).replace_file(path, tmp_path / f"{workers}.jsonl")
        for workers in (1, 8)
    ]

    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "8.jsonl").read_bytes()
    assert reports[0] == reports[1]
    assert reports[0].changed_rows == 400


def test_other_formats_become_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('instruction,response\n"MRN: 00481516\nthen",Yes\n', encoding="utf-8")

    Replacer().replace_file(path, tmp_path / "out.jsonl")

    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"instruction": "MRN: [MRN_1]\nthen", "response": "Yes"}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_row_that_cannot_be_read_leaves_no_file(tmp_path: Path, num_workers: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "MRN: 00481516"}\n{"instruction": \n')

    with pytest.raises(DataError, match="row 2") as caught:
        Replacer(num_workers=num_workers, keyring=KEYRING).replace_file(
            path, tmp_path / "o.jsonl", vault=tmp_path / "v"
        )

    assert caught.value.code == "unreadable_row"
    assert os.listdir(tmp_path) == ["rows.jsonl"]  # noqa: PTH208 - hidden ones too


def test_a_row_that_grows_too_large_for_training_is_refused() -> None:
    text = "Dr. Li, " * 110_000

    with pytest.raises(DataError, match="longer than"):
        Replacer().replace_rows([{"instruction": text}])


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"instruction": "MRN: 00481516"}])

    with pytest.raises(FileExistsError):
        Replacer().replace_file(path, path)

    assert "00481516" in path.read_text()


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")

    with pytest.raises(DataError, match="no rows"):
        Replacer().replace_file(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")


def test_a_report_counts_and_tells_nothing() -> None:
    _, report = Replacer(keyring=KEYRING).replace_rows([{"instruction": "MRN: 00481516 and MRN: 00481516"}, {"a": "x"}])

    expected = ReplacementReport(
        rows=2, changed_rows=1, replaced={"mrn": 2}, tokens=1, strategy=Strategy.SAFE_HARBOR, key_version=1
    )
    assert report == expected
