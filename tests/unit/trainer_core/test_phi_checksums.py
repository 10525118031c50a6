"""Check digits: real examples pass, and one wrong digit never does."""

from collections.abc import Callable

import pytest

from trainer_core.data.phi import checksums

NUMBERS: list[tuple[Callable[[str], bool], str]] = [
    (checksums.is_card, "4111111111111111"),
    (checksums.is_npi, "1234567893"),
    (checksums.is_dea, "AB1234563"),
    (checksums.is_vin, "1M8GDM9AXKP042788"),
    (checksums.is_gtin, "00844588003288"),
    (checksums.is_iban, "GB82WEST12345698765432"),
]


@pytest.mark.parametrize(("is_valid", "number"), NUMBERS)
def test_a_number_is_valid_and_its_neighbours_are_not(is_valid: Callable[[str], bool], number: str) -> None:
    assert is_valid(number)
    assert not is_valid(number[:-1] + str((int(number[-1]) + 1) % 10))


@pytest.mark.parametrize(("text", "expected"), [("1EG4TE5MK73", True), ("1SG4TE5MK73", False), ("0EG4TE5MK73", False)])
def test_beneficiary_numbers_follow_the_grammar_of_cms(text: str, expected: bool) -> None:
    assert checksums.is_mbi(text) is expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("219", "09", "9999"), True), (("666", "09", "9999"), False), (("219", "00", "9999"), False)],
)
def test_some_social_security_numbers_are_never_given(parts: tuple[str, str, str], expected: bool) -> None:
    assert checksums.is_ssn(*parts) is expected
