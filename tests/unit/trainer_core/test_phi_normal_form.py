"""Texts in normal form lead back to where everything stood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.data.phi.finding import CHECKED, GUESSED, SHAPED, Finding, resolve
from trainer_core.data.phi.normal_form import normalise, to_lower

UNSEEN = [
    ("1\u034f2", "12"),
    ("1\u03362\u0336", "12"),
    ("1\u20e3", "1"),
    ("J\u0301o", "Jo"),
    ("1\U000e00412", "12"),
    ("1\u31642", "12"),
    ("1\x002\x083", "123"),
    ("1\r\n2", "1\n2"),
    ("é1\r\n2\x003", "é1\n23"),
]


@given(
    st.text(
        alphabet="aB1 \u200b\u00ad\u200f\uff11\u0661\ufb01e\u0301\u0410\u2013\x00\r\n\u0336\u3164\U000e0041",
        max_size=40,
    )
)
def test_every_stretch_leads_back_into_the_original(text: str) -> None:
    form = normalise(text)
    for index in range(len(form.text)):
        start, end = form.to_original(index, index + 1)
        assert 0 <= start < end <= len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("１２３", "123"), ("٣", "3"), ("a\u200bb", "ab"), ("\u0410BC1", "ABC1"), ("\u2013", "-"), *UNSEEN],
)
def test_disguises_fall_off(text: str, expected: str) -> None:
    assert normalise(text).text == expected


def test_a_foreign_word_stays_what_it_is() -> None:
    assert normalise("Москва").text == "Москва"


def test_lower_case_never_changes_the_length() -> None:
    assert len(to_lower("İstanbul")) == len("İstanbul")


def test_the_surer_finding_wins_and_the_longer_of_two_alike() -> None:
    checked, longer, shorter = (
        Finding(4, 8, "npi", "a", CHECKED),
        Finding(2, 8, "mrn", "b"),
        Finding(5, 8, "phone", "c"),
    )

    assert resolve([shorter, longer], "x" * 9) == [longer]
    assert [f.rule for f in resolve([longer, checked], "x" * 9)] == ["b", "a"]
    assert resolve([Finding(4, 8, "name", "d", GUESSED), checked], "x" * 9) == [checked]


def test_what_a_winner_leaves_open_stays_a_finding() -> None:
    left = resolve([Finding(0, 9, "mrn", "long", SHAPED), Finding(4, 6, "npi", "sure", CHECKED)], "x" * 9)

    assert [(f.start, f.end) for f in left] == [(0, 4), (4, 6), (6, 9)]
