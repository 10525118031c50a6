"""Identifiers are found as people see them in a browser or a terminal, at their places in the text as it stands."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_core.data.phi.decoded_text import decode
from trainer_core.data.phi.replacement import Replacer
from trainer_core.data.phi.scanner import scan_record, scan_text

DISGUISED = [
    ("SSN &#49;23-45-6789 ok", "ssn", "&#49;23-45-6789"),
    ("SSN &#x31;23&#45;45-6789.", "ssn", "&#x31;23&#45;45-6789"),
    ("Seen John&nbsp;Smith today", "name", "John&nbsp;Smith"),
    ("write to john.smith&#64;mail.com", "email", "john.smith&#64;mail.com"),
    ("write to john.smith%40mail.com", "email", "john.smith%40mail.com"),
    ("name=John%20Smith&ssn=123%2D45%2D6789", "ssn", "123%2D45%2D6789"),
    ("Patient: J%C3%BCrgen%20Quillberg", "name", "J%C3%BCrgen%20Quillberg"),
    ("SSN 123-<b>45</b>-6789", "ssn", "123-<b>45</b>-6789"),
    ("SSN 12\x1b[1;31m3-45-67\x1b[0m89", "ssn", "12\x1b[1;31m3-45-67\x1b[0m89"),
    ("SSN 123-\x1b]8;;a\x0745-6789", "ssn", "123-\x1b]8;;a\x0745-6789"),
    ("SSN \u202e9876-54-321\u202c ok", "ssn", "9876-54-321"),
    ("SSN 12\u28003-45-6789", "ssn", "12\u28003-45-6789"),
    ("SSN 12\u31643-45-6789", "ssn", "12\u31643-45-6789"),
    ("Seen John\uffa0Smith today", "name", "John\uffa0Smith"),
    ("SSN 123-\u202845-6789", "ssn", "123-\u202845-6789"),
    ("SSN 123\u2029-45-6789", "ssn", "123\u2029-45-6789"),
    ("SSN 123-\x0b45-6789", "ssn", "123-\x0b45-6789"),
    ("SSN 123\x0c-45-6789", "ssn", "123\x0c-45-6789"),
    ("SSN 123-45-\x856789", "ssn", "123-45-\x856789"),
    ("SSN 123-45-\r6789", "ssn", "123-45-\r6789"),
    ("Reach 617-\x0b555-0142", "phone", "617-\x0b555-0142"),
]


@pytest.mark.parametrize(("text", "phi_class", "value"), DISGUISED)
def test_a_disguised_identifier_is_found_whole_at_its_place(text: str, phi_class: str, value: str) -> None:
    assert (phi_class, value) in [(f.phi_class, text[f.start : f.end]) for f in scan_text(text)]


def test_disguised_identifiers_are_replaced_and_a_second_run_changes_nothing() -> None:
    rows = [{"instruction": text, "response": "Yes."} for text, _, _ in DISGUISED]

    once, _ = Replacer().replace_rows(rows)
    twice, report = Replacer().replace_rows(once)

    assert [value for (_, _, value), row in zip(DISGUISED, once, strict=True) if value in str(row["instruction"])] == []
    assert twice == once
    assert report.changed_rows == 0


def test_one_value_has_one_token_however_it_was_encoded() -> None:
    row = {"instruction": "SSN 219-09-9999, again 219&#45;09%2D9999", "response": "John Smith or John&nbsp;Smith."}

    [replaced], _ = Replacer().replace_rows([row])

    assert replaced == {"instruction": "SSN [SSN_1], again [SSN_1]", "response": "[PATIENT_1] or [PATIENT_1]."}


def test_a_name_found_in_one_reading_marks_its_mentions_in_other_fields() -> None:
    fields = {"instruction": "Patient: Zorvan&nbsp;Quillberg", "response": "Tell quillberg to rest."}

    assert [fields["response"][f.start : f.end] for f in scan_record(fields)["response"]] == ["quillberg"]


def test_an_address_with_percent_signs_stays_one_finding() -> None:
    text = "See https://portal.example.org/a%20b?q=John%20Smith now"

    [finding] = scan_text(text)

    assert text[finding.start : finding.end] == "https://portal.example.org/a%20b?q=John%20Smith"


@pytest.mark.parametrize("said", ["SSN 123-45-6789", "Patient John Smith, phone 617-555-0142", "Пациент Иванов"])
def test_base64_of_a_text_is_a_finding_of_its_own(said: str) -> None:
    run = base64.b64encode(said.encode()).decode()
    text = f"The note: {run}, as sent."

    [finding] = scan_text(text)

    assert (finding.phi_class, text[finding.start : finding.end]) == ("encoded", run)


def test_a_replaced_encoded_text_is_a_placeholder_and_no_fault() -> None:
    run = base64.b64encode(b"SSN 123-45-6789").decode()

    [replaced], _ = Replacer().replace_rows([{"instruction": run, "response": "Yes."}])

    assert replaced["instruction"] == "[ENCODED_1]"
    assert scan_text("[ENCODED_1]") == []


@pytest.mark.parametrize(
    "text",
    [
        "diseasesdiseases and dehydroepiandrosterone, electroencephalographically",
        "ATGCATGCATGCATGCATGCATGC",
        "550e8400-e29b-41d4-a716-446655440000",
        "____________________ --------------------",
        "5% of 20, &lt;5 mg &amp; more, p<0.05, 100%25 sure",
        "Q&A; R&D, AT&T, &nosuch; %ZZ %FF%FE",
    ],
)
def test_what_only_looks_encoded_is_left_alone(text: str) -> None:
    assert scan_text(text) == []


@settings(deadline=None)
@given(st.text(alphabet="aB1 &#49;<b>%40\x1b[m]\x07\u202e\u202c\u2800\u3164\n-", max_size=60))
def test_every_stretch_of_the_second_reading_leads_back_into_the_text(text: str) -> None:
    reading = decode(text)
    for index in range(len(reading.text) if reading else 0):
        assert reading is not None
        start, end = reading.to_original(index, index + 1)
        assert 0 <= start < end <= len(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [" SSN 219-09-9999 ", "&#50;", "\u202e", "\u202c", "\x1b[", "[PATIENT_1]", "%4", "John", " ", "m"]
        ),
        max_size=12,
    )
)
def test_whatever_signs_stand_around_it_a_row_is_replaced_once_and_for_all(parts: list[str]) -> None:
    row = {"instruction": "".join(parts), "response": "Yes."}

    once, _ = Replacer().replace_rows([row])

    assert "219-09-9999" not in json.dumps(once)
    assert Replacer().replace_rows(once)[0] == once
