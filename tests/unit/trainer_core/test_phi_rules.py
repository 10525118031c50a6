"""Each kind of identifier is found in its usual forms, and what only looks like one is left alone."""

import time

import pytest

from trainer_core.data.phi.scanner import scan_record, scan_text


def find(text: str) -> list[tuple[str, str]]:
    return [(finding.phi_class, text[finding.start : finding.end]) for finding in scan_text(text)]


@pytest.mark.parametrize(
    ("text", "phi_class", "value"),
    [
        ("SSN 219-09-9999.", "ssn", "219-09-9999"),
        ("her social security number is 219099999", "ssn", "219099999"),
        ("Reach her at (617) 555-0142 x22.", "phone", "(617) 555-0142 x22"),
        ("020 555 0142-Office", "phone", "020 555 0142"),
        ("Call +44 20 7946 0958 today", "phone", "+44 20 7946 0958"),
        ("Fax: 617.555.0143", "fax", "617.555.0143"),
        ("Write to nurse@ward.local.", "email", "nurse@ward.local"),
        ("See https://portal.example.org/a?b=1.", "url", "https://portal.example.org/a?b=1"),
        ("Host 10.20.30.40 was down", "ip", "10.20.30.40"),
        ("From fe80::1ff:fe23:4567:890a today", "ip", "fe80::1ff:fe23:4567:890a"),
        ("MRN: 00481516", "mrn", "00481516"),
        ("MBI 1EG4-TE5-MK73", "health_plan", "1EG4-TE5-MK73"),
        ("NPI 1234567893", "npi", "1234567893"),
        ("DEA AB1234563", "dea", "AB1234563"),
        ("VIN 1M8GDM9AXKP042788", "vin", "1M8GDM9AXKP042788"),
        ("UDI (01)00844588003288", "device", "(01)00844588003288"),
        ("Serial number: PX-338812", "device", "PX-338812"),
        ("Account number: 8827-1102", "account", "8827-1102"),
        ("License number: D1234567", "licence", "D1234567"),
        ("License plate: KLM-4471", "plate", "KLM-4471"),
        ("Card 4111 1111 1111 1111", "card", "4111 1111 1111 1111"),
        ("IBAN GB82 WEST 1234 5698 7654 32", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("Lives at 12 Old Quarry Road now", "street", "12 Old Quarry Road"),
        ("Duluth, MN 55802", "zip", "55802"),
        ("She lives in Duluth with her son", "city", "Duluth"),
        ("City: Duluth", "city", "Duluth"),
        ("a 93-year-old woman", "age", "93"),
        ("born 1931 in poverty", "age", "1931"),
        ("data:image/png;base64,iVBORw0KGgo=", "image", "data:image/png;base64,iVBORw0KGgo="),
    ],
)
def test_an_identifier_is_found_whole(text: str, phi_class: str, value: str) -> None:
    assert (phi_class, value) in find(text)


@pytest.mark.parametrize(
    "date",
    [
        "03/04/1961",
        "3/4/61",
        "1961-03-04",
        "1961-03-04 14:30:00",
        "March 4, 1961",
        "4 March 1961",
        "4-Mar-1961",
        "04.03.1961",
        "March 4th",
        "the 3rd of May",
        "May 3rd at 14:30",
        "March 1961",
        "the twenty-first of March",
    ],
)
def test_dates_are_found_in_every_usual_form(date: str) -> None:
    assert ("date", date) in find(f"Seen on {date}")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Dr. Okonjo saw her", "Okonjo"),
        ("mr. okonkwo smith came", "okonkwo smith"),
        ("Patient: Zorvan Quillberg", "Zorvan Quillberg"),
        ("Patient: Quillberg, Zorvan", "Quillberg, Zorvan"),
        ("My name is Zorvan", "Zorvan"),
        ("People call me Zorvan", "Zorvan"),
        ("What is your last name? User: Zorvan", "Zorvan"),
        ("Zorvan Quillberg, MD reviewed it", "Zorvan Quillberg"),
        ("Sincerely,\nZorvan Quillberg", "Zorvan Quillberg"),
        ("We met Susan Miller yesterday", "Susan Miller"),
        ("we met susan miller yesterday", "susan miller"),
        ("Zorvan T. Quillberg was here", "Zorvan T. Quillberg"),
        ("SMITH, JOHN was admitted", "SMITH, JOHN"),
    ],
)
def test_names_are_found_by_title_label_signature_and_lists(text: str, name: str) -> None:
    found = [value for phi_class, value in find(text) if phi_class == "name"]

    assert all(any(part in value for value in found) for part in name.replace(",", "").split()), found


@pytest.mark.parametrize(
    "text",
    [
        "Parkinson's disease and Crohn's disease, a Foley catheter, Graves ophthalmopathy, Wilson disease.",
        "St John's wort makes contraceptive pills less effective.",
        "The Prader-Willi syndrome and Hodgkin lymphoma; an Apgar score of 9; a Murphy sign.",
        "BP 128/76, HR 72, 5.2 mg/dL on 2-3 occasions, HbA1c 8.4%, INR 2.0-3.0.",
        "It may first appear at age 15 and may cause pain. She will rose to the art of hope.",
        "A 45-year-old man had surgery in 2009.",
        "Levodopa 25/100 three times a day; 1 in 10,000 people; pain 3/10.",
        "He had 12 in Room 4, and exon 15 of Connexin 26, in 2009 Norway had 14 cases.",
        "Type 15 may have an effect. Connexin 26 may be involved.",
    ],
)
def test_medicine_is_left_alone(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize("text", ["NPI on 1234567890 forms", "1M8GDM9AXKP042789", "999999999999", "000-12-3456"])
def test_wrong_check_digits_prove_nothing(text: str) -> None:
    assert not {"npi.luhn", "vin.checked", "card.luhn", "ssn.form"} & {finding.rule for finding in scan_text(text)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("SSN 2l9-09-99S9", "2l9-09-99S9"),
        ("SSN 2 1 9 - 0 9 - 9 9 9 9", "2 1 9 - 0 9 - 9 9 9 9"),
        ("SSN 219-\n09-9999", "219-\n09-9999"),
        ("SSN 219\u200b-09-9999", "219\u200b-09-9999"),
        ("SSN ２１９-09-9999", "２１９-09-9999"),
        ("SSN 219\u201309\u20139999", "219\u201309\u20139999"),
    ],
)
def test_disguised_numbers_are_found_at_their_original_place(text: str, value: str) -> None:
    assert ("ssn", value) in find(text)


@pytest.mark.parametrize(
    "address",
    [
        "12 Old Quarry Road Apt. 4\nDuluth, MN 55802",
        "Quarryvej 12, Odense, Denmark 51234",
        "Lindwurmterrasse 7 Suite 12\n Sankt Veit an der Glan\n Austria",
        "4412 Quarrybrook 31, Duluth",
        "14 rue de la Carrière",
        "the corner of 12 Old Quarry Road and Larkspur Lane",
        "USS Quillberg\nFPO AE 09876",
        "812 P.O. Box 44 Duluth\n Canada",
    ],
)
def test_an_address_is_found_whole_with_state_and_country(address: str) -> None:
    text = f"Letters reach her at {address}."
    first = text.index(address)
    places = {index for finding in scan_text(text) for index in range(finding.start, finding.end)}

    left = [c for index, c in enumerate(address, first) if index not in places and c.isalnum()]

    assert left == []


def test_a_street_that_no_list_has_is_found_where_somebody_lives() -> None:
    assert ("street", "Zorvanmark 44") in find("He lives on Zorvanmark 44.")


@pytest.mark.parametrize(
    "street", ["418\nN. Tall Birch Lane", "77 S. Ford Rd", "2041 east harbour way", "35 fern trail"]
)
def test_a_street_is_found_over_a_broken_line_and_in_lower_case(street: str) -> None:
    assert ("street", street) in find(f"moved to {street}")


@pytest.mark.parametrize(
    "text",
    [
        "Rest for 20 min, then a 30 minute walk",
        "in about 5 easy way",
        "300 meter run",
        "Saw 12 of 20. That way it heals",
    ],
)
def test_a_number_before_a_word_that_may_end_a_street_is_none_by_that_alone(text: str) -> None:
    assert [found for found in find(text) if found[0] == "street"] == []


def test_a_name_that_no_list_has_belongs_to_the_surname_behind_it() -> None:
    assert find("It was sung by Zorvana Kaczmarek in 1977.") == [("name", "Zorvana Kaczmarek")]


def test_a_name_found_once_marks_its_other_mentions_in_the_record() -> None:
    fields = {"instruction": "Patient: Zorvan Quillberg", "response": "Tell quillberg to rest; ZORVAN agreed."}

    found = scan_record(fields)["response"]

    assert [fields["response"][f.start : f.end] for f in found] == ["quillberg", "ZORVAN"]


def test_a_checked_number_wins_over_its_label() -> None:
    assert find("Account number: 4111 1111 1111 1111") == [("card", "4111 1111 1111 1111")]


@pytest.mark.parametrize(
    "text",
    [
        *("1" * 20_000, "a@" * 10_000, "A. " * 10_000, "12 Main " * 5_000, "(" * 20_000, "1-" * 10_000),
        *("&#49;" * 10_000, "\u202e1-" * 10_000, "<a " * 20_000, "\x1b[1" * 10_000, "%41" * 10_000, "A" * 1_000_000),
    ],
)
def test_no_text_takes_the_scan_for_ever(text: str) -> None:
    started = time.process_time()

    scan_text(text)

    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "SSN 123-45-\r\n6789",
        "SSN 123\x00-45-6789",
        "SSN 1\u03362\u03363\u0336-45-67\u03368\u03369\u0336",
        "SSN 12\u034f3-45-6789",
    ],
)
def test_a_number_is_found_whole_behind_what_nobody_sees(text: str) -> None:
    [finding] = scan_text(text)

    assert (finding.phi_class, finding.start, finding.end) == ("ssn", 4, len(text))
