"""Placeholders are no identifiers; broken, mixed and half placed ones are findings of their own."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from trainer_core.data.phi.file_scan import UnreadableRow, scan_file
from trainer_core.data.phi.scanner import scan_text


@pytest.mark.parametrize(
    "text",
    [
        "[PATIENT_1] came on [DATE_2].",
        "Seen by [**Known lastname 1234**] on [**2012-03-04**].",
        "Patient ___ was admitted on ___.",
        "Dr. *** saw him.",
    ],
)
def test_placeholders_of_every_convention_are_no_identifiers(text: str) -> None:
    assert scan_text(text) == []


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("[MRN_88442211] came", {"PHI011"}),
        ("[PHONE_6175550142] rang", {"PHI011"}),
        ("[PATIENT_JOHN_SMITH] came", {"PHI012"}),
    ],
)
def test_a_value_in_the_place_of_an_index_is_a_fault(text: str, rules: set[str]) -> None:
    assert rules <= {finding.rule for finding in scan_text(text)}


def test_what_stands_in_brackets_of_another_convention_is_read_when_it_is_more_than_a_name_and_a_count() -> None:
    text = "Call [**MRN 884422 (617) 555-0142 john@example.com**] now."

    assert {"phone", "email"} <= {finding.phi_class for finding in scan_text(text)}
    assert scan_text("[**Telephone/Fax (1) 12345**] rang on [**2151-7-16**], and [**Age over 90 **].") == []


@pytest.mark.parametrize("text", ["[PATIENT_1 came", "[**2012-03-04 came", "PATIENT_1] came"])
def test_an_unclosed_placeholder_is_phi011(text: str) -> None:
    assert "PHI011" in [finding.rule for finding in scan_text(text)]


@pytest.mark.parametrize("text", ["[PATIENT_1] Quillberg came", "We saw Zorvan [PATIENT_1]"])
def test_half_of_a_name_beside_a_placeholder_is_phi016(text: str) -> None:
    assert "PHI016" in [finding.rule for finding in scan_text(text)]


def test_columns_that_training_does_not_know_are_scanned_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    row = {"instruction": "Hi", "response": "Yes", "notes": "SSN 219-09-9999", "born": datetime.date(1961, 3, 4)}
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)

    ((_, found),) = scan_file(path)

    assert not isinstance(found, UnreadableRow)
    assert {(finding.field, finding.phi_class) for finding in found} == {("notes", "ssn"), ("born", "date")}


def test_a_second_convention_in_a_file_is_phi010(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = ["[PATIENT_1] coughs", "[PATIENT_1] sneezes", "[**Name**] coughs"]
    path.write_text("".join(json.dumps({"instruction": t, "response": "Yes"}) + "\n" for t in texts))

    found = {row: findings for row, findings in scan_file(path) if not isinstance(findings, UnreadableRow)}

    assert [[f.rule for f in found[row]] for row in (1, 2, 3)] == [[], [], ["PHI010"]]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("[FOO_1] came", ["PHI012"]),
        ("[SMITH_12] came", ["PHI012"]),
        ("as in [COVID-19] or [MEDLINE]", []),
        ("[AGE_OVER_89] came with [PATIENT_7f3a9c0011223344]", []),
        ("a 93-year-old", ["PHI018"]),
        ("born 1931", ["PHI018"]),
        ("ZIP: 036", ["PHI019"]),
        ("ZIP: 036**", ["PHI019"]),
        ("ZIP: 606", []),
        ("[PATIENT_1] Underwent Surgery", []),
    ],
)
def test_faults_have_codes_of_their_own(text: str, rules: list[str]) -> None:
    assert [finding.rule for finding in scan_text(text)] == rules


def test_what_is_found_does_not_depend_on_a_tokens_text() -> None:
    texts = [
        f"12 {token} Street, call {token} 555-0142 or {token}, MD of {token}" for token in ("[CITY_1]", "[ID_123456]")
    ]

    first, second = ([f.rule for f in scan_text(text)] for text in texts)

    assert first == second


def find_dangling(tmp_path: Path, row: Mapping[str, object]) -> list[tuple[str, str]]:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [(_, findings)] = scan_file(path)
    assert not isinstance(findings, UnreadableRow)
    return [(finding.field, finding.rule) for finding in findings]


def test_a_placeholder_that_stands_only_in_the_answer_is_phi015(tmp_path: Path) -> None:
    row = {
        "instruction": "Is [PATIENT_1] well?",
        "response": "[PATIENT_1] is, [PATIENT_2] and [DATE] not.",
        "x": "[PATIENT_2]",
    }

    assert find_dangling(tmp_path, row) == [("response", "PHI015")]


def test_in_conversations_any_turn_of_others_makes_a_placeholder_known(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "[DOCTOR_1] asks."},
        {"role": "user", "content": "Is [PATIENT_1] well?"},
        {"role": "assistant", "content": "[PATIENT_1] is, says [DOCTOR_1], not [PATIENT_9]."},
    ]

    assert find_dangling(tmp_path, {"messages": turns}) == [("messages[2].content", "PHI015")]


def test_keys_that_name_an_identifier_label_their_value_and_odd_keys_are_texts(tmp_path: Path) -> None:
    row = {"instruction": "x", "mrn": "A-77", "patient_name": "Zorvan Q", "phone": "unknown", "Jane Doe": 1}

    assert find_dangling(tmp_path, row) == [
        ("mrn", "mrn.field"),
        ("patient_name", "name.field"),
        ("key[4]", "name.listed"),
    ]


def test_a_key_labels_whatever_stands_in_its_list_or_object(tmp_path: Path) -> None:
    row = {
        "instruction": "x",
        "ssn": [123456789],
        "mrn": {"value": "A-77", "issued": [{"by": "the ward"}], "phone": "x 442"},
        "other": ["A-77"],
    }

    assert find_dangling(tmp_path, row) == [
        ("ssn[0]", "ssn.field"),
        ("mrn.value", "mrn.field"),
        ("mrn.phone", "phone.field"),
    ]
