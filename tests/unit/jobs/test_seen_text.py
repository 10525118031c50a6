"""Names and reasons count as people see them."""

import pytest

from jobs.seen_text import drop_unseen, fold_name


def test_blanks_of_no_width_are_no_text() -> None:
    assert drop_unseen("\u200b\u2060 \u200f\ufeff") == ""
    assert drop_unseen("\u3164\u2800\uffa0\u034f\x01\x1b\x7f") == ""


@pytest.mark.parametrize(
    "same",
    [
        "ann roe",
        "Ann  Roe",
        "Ann Roe\u200b",
        "Ann\u034f Ro\u0336e",
        "\u0410nn Ro\u0435",
        "Ann\u2800Roe",
        "Ann R\x01oe",
        "Ａnn\u00a0Roe",
        "Ann R\u043e\u0435",  # Two in a row, so that the second has no Latin letter beside it.
        "AnnRoe",
        "Ann-Roe.",
        "Ann R0e",
    ],
)
def test_who_looks_the_same_is_no_second_person(same: str) -> None:
    assert fold_name(same) == fold_name("Ann Roe")


def test_another_name_is_another_person() -> None:
    assert fold_name("Ann Rowe") != fold_name("Ann Roe")
    assert fold_name("\u0930\u093e\u092e") != fold_name("\u0930\u092e\u0940")  # Marks are vowels there: Ram, Rami.


def test_a_capital_i_is_no_other_person_than_a_small_l() -> None:
    assert fold_name("BiII Poe") == fold_name("Bill Poe")
