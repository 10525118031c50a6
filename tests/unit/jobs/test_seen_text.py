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
    ],
)
def test_who_looks_the_same_is_no_second_person(same: str) -> None:
    assert fold_name(same) == fold_name("Ann Roe")


def test_another_name_is_another_person() -> None:
    assert fold_name("Ann Rowe") != fold_name("Ann Roe")
